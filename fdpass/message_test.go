package fdpass

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestGolden pins the bytes that doc.go promises to workers in other languages.
// If it fails, the protocol has changed: that needs another version number.
func TestGolden(t *testing.T) {
	for _, v := range []struct {
		typ Type
		hs  []Handoff
		hex string
	}{
		{TypeReady, nil, "01 02 0000 0018 0000"},
		{TypeLeave, nil, "01 03 0000 0018 0000"},
		{TypeHandoff, []Handoff{
			{Client: netip.MustParseAddrPort("192.0.2.1:8080")},
			{Client: netip.MustParseAddrPort("[fe80::1%7]:443"), Flags: FlagProxied},
			{},
		}, `01 01 0003 0018 0000
			00 04 1f90 c0000201 000000000000000000000000 00000000
			01 06 01bb fe800000000000000000000000000001 00000007
			00 00 0000 00000000000000000000000000000000 00000000`},
		{TypeReturn, []Handoff{{Client: netip.MustParseAddrPort("[::ffff:192.0.2.1]:1"), Flags: 2}}, `01 04 0001 0018 0000
			02 06 0001 00000000000000000000ffffc0000201 00000000`},
	} {
		want, err := hex.DecodeString(strings.Join(strings.Fields(v.hex), ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := appendMessage(nil, v.typ, v.hs); !bytes.Equal(got, want) {
			t.Errorf("%s %v is\n%x, want\n%x", v.typ, v.hs, got, want)
		}
	}
	for name, v := range map[string][2]int{
		"largest message": {maxMessage, 3592},
		"largest batch":   {MaxBatch, 64},
		"handoff":         {int(TypeHandoff), 1},
		"ready":           {int(TypeReady), 2},
		"leave":           {int(TypeLeave), 3},
		"return":          {int(TypeReturn), 4},
		"listen":          {int(TypeListen), 5},
		"report":          {int(TypeReport), 6},
		"ping":            {int(TypePing), 7},
		"pong":            {int(TypePong), 8},
		"flag proxied":    {int(FlagProxied), 1},
	} {
		if v[0] != v[1] {
			t.Errorf("%s: %d, want %d", name, v[0], v[1])
		}
	}
}

// TestReport: the bytes that doc.go promises, and that it arrives.
func TestReport(t *testing.T) {
	fdtest.NoLeaks(t)
	sent := Report{Open: 0x0102030405060708, Accepted: 0x1112131415161718}
	const want = "0106000100180000" + "00000000" + "0102030405060708" + "1112131415161718" + "00000000"
	if got := hex.EncodeToString(appendReport(nil, sent)); got != want {
		t.Errorf("a report is\n%s, want\n%s", got, want)
	}
	master, worker := pair(t)
	if err := worker.TrySendReport(sent); err != nil {
		t.Fatal(err)
	}
	var m Message
	if err := master.Receive(&m); err != nil || m.Type != TypeReport || m.Report != sent || len(m.Handoffs) > 0 {
		t.Errorf("received %+v, error %v", m, err)
	}
	// None of these is one.
	fds := sockets(t, 2)
	send(t, worker, TypeReport, nil)
	send(t, worker, TypeReport, handoffs(fds[0]))
	send(t, worker, TypeReport, handoffs(fds...))
	for range 3 {
		wantError(t, master, ErrMalformed)
	}
	for full := false; !full; full = worker.TrySendReport(sent) == ErrFull {
	}
}

// TestPing: question and answer carry nothing.
func TestPing(t *testing.T) {
	fdtest.NoLeaks(t)
	master, worker := pair(t)
	fds := sockets(t, 1)
	for _, typ := range []Type{TypePing, TypePong} {
		send(t, master, typ, nil)
		var m Message
		if err := worker.Receive(&m); err != nil || m.Type != typ || len(m.Handoffs) > 0 {
			t.Errorf("received %+v, error %v", m, err)
		}
		send(t, master, typ, handoffs(fds...))
		wantError(t, worker, ErrMalformed)
	}
}

// TestOnTheWire: the descriptors ride on the message in one SCM_RIGHTS control
// message (man 7 unix), as many as there are records.
func TestOnTheWire(t *testing.T) {
	fdtest.NoLeaks(t)
	fd, conn := rawPair(t)
	defer unix.Close(fd)
	fds := sockets(t, 3)
	send(t, conn, TypeHandoff, handoffs(fds...))
	body, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(64*4))
	n, oobn, flags, _, err := unix.Recvmsg(fd, body, oob, 0)
	if err != nil || !bytes.Equal(body[:n], appendMessage(nil, TypeHandoff, handoffs(fds...))) || flags != 0 {
		t.Errorf("received %x, flags %#x, error %v", body[:n], flags, err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, error %v", len(messages), err)
	}
	got, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(got) != 3 {
		t.Errorf("descriptors %v, error %v", got, err)
	}
	closeAll(got)
}

// TestScope: a zone that is not a number cannot be sent, since names of
// interfaces mean nothing elsewhere.
func TestScope(t *testing.T) {
	for zone, want := range map[string]uint32{"": 0, "7": 7, "4294967295": 4294967295, "4294967296": 0, "eth0": 0, "-1": 0} {
		if got := scopeOf(netip.MustParseAddr("fe80::1").WithZone(zone)); got != want {
			t.Errorf("scope of zone %q is %d, want %d", zone, got, want)
		}
	}
}

func TestTypeString(t *testing.T) {
	for typ, want := range map[Type]string{TypeHandoff: "handoff", TypeReady: "ready", TypeLeave: "leave", TypeReturn: "return", 9: "type 9"} {
		if typ.String() != want {
			t.Errorf("%q, want %q", typ, want)
		}
	}
}

// parseAll parses a message as Receive does, but for the descriptors.
func parseAll(b []byte) (t Type, hs []Handoff, err error) {
	t, records, size, err := parseHeader(b)
	for ; err == nil && len(records) > 0; records = records[size:] {
		var h Handoff
		h, err = parseRecord(records)
		hs = append(hs, h)
	}
	return t, hs, err
}

// FuzzParseMessage: parsing never panics, fails only with ErrMalformed, and what
// parses is encoded to a message that means the same.
func FuzzParseMessage(f *testing.F) {
	for _, b := range messages() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		typ, hs, err := parseAll(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%x: error %v", b, err)
			}
			return
		}
		again, hs2, err := parseAll(appendMessage(nil, typ, hs))
		if err != nil || again != typ || len(hs2) != len(hs) {
			t.Fatalf("%x: %s with %d records becomes %s with %d, error %v", b, typ, len(hs), again, len(hs2), err)
		}
		for i := range hs {
			if hs[i] != hs2[i] {
				t.Errorf("%x: record %d is %v, then %v", b, i, hs[i], hs2[i])
			}
		}
	})
}

// messages are good, bad and later ones, for the fuzzers to begin with.
func messages() [][]byte {
	good := appendMessage(nil, TypeHandoff, clients)
	full := appendMessage(nil, TypeReturn, numbered(0, 1, MaxBatch))
	return [][]byte{
		appendReport(nil, Report{1, 1 << 40}), edit(appendReport(nil, Report{}), 3, 2),
		nil, {1}, good, full, good[:len(good)-1], later(clients[:3]...),
		appendMessage(nil, TypeReady, nil), appendMessage(nil, TypePing, nil), appendMessage(nil, TypePong, nil),
		appendMessage(nil, TypePing, clients[:1]), appendMessage(nil, TypePong, clients[:1]), appendMessage(nil, 200, clients[:1]),
		edit(good, 0, 2), edit(good, 3, 0xff), edit(good, 5, 1), edit(good, headerSize+1, 5),
		append(full, good...),
	}
}

// edit returns a copy of a message with one byte changed.
func edit(b []byte, at int, to byte) []byte {
	b = bytes.Clone(b)
	b[at] = to
	return b
}

// later returns a message as a later version may send it: 32 bytes a record.
func later(hs ...Handoff) []byte {
	b := edit(appendMessage(nil, TypeHandoff, hs)[:headerSize], 5, 32)
	for i := range hs {
		b = append(appendRecord(b, &hs[i]), "8 more B"...)
	}
	return b
}
