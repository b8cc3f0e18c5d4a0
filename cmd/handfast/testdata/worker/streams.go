package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net/http"
	"path"
	"time"
)

// events sends one every few milliseconds, until the client goes; or, as /events/1s, for so long, and then says that this is the end.
func events(w http.ResponseWriter, r *http.Request) {
	var end <-chan time.Time
	if long, err := time.ParseDuration(path.Base(r.URL.Path)); err == nil {
		end = time.After(long)
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for {
		io.WriteString(w, "data: "+lineFor(r.RemoteAddr)+"\n")
		http.NewResponseController(w).Flush()
		select {
		case <-time.After(10 * time.Millisecond):
		case <-end:
			io.WriteString(w, "data: end\n\n")
			return
		case <-r.Context().Done():
			return
		}
	}
}

// ownCertificate is one that nobody has signed.
func ownCertificate() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}
