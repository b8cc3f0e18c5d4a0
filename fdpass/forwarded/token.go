package forwarded

import "strings"

// Token names a worker, at the end of a session's id or alone: characters of a–z and 2–7. The master makes it and reads it (package
// clientip); for all others it is no more than equal or not. The zero Token is none.
type Token [TokenSize]byte

// TokenSize is the length of a Token, in bytes.
const TokenSize = 26

// digits are what a token is written with: base32 (RFC 4648, section 6) in small letters, since it passes in URLs, cookies and headers.
const digits = "abcdefghijklmnopqrstuvwxyz234567"

// MakeToken writes 16 bytes as a token.
func MakeToken(bytes [16]byte) (t Token) {
	bits, n := uint(0), 0
	at := 0
	for i := range t {
		if n < 5 && at < len(bytes) {
			bits, n, at = bits<<8|uint(bytes[at]), n+8, at+1
		}
		if n < 5 { // the last one has two bits of nothing
			bits, n = bits<<(5-n), 5
		}
		n -= 5
		t[i] = digits[bits>>n&31]
	}
	return t
}

// Bytes returns what the token was made of.
func (t Token) Bytes() (bytes [16]byte) {
	bits, n := uint(0), 0
	at := 0
	for _, c := range t {
		digit := uint(c - 'a')
		if c < 'a' {
			digit = uint(c-'2') + 26
		}
		bits, n = bits<<5|digit&31, n+5
		if n >= 8 && at < len(bytes) {
			n -= 8
			bytes[at] = byte(bits >> n)
			at++
		}
	}
	return bytes
}

// TokenIn returns the token that an id of a session ends in, behind a dot, as Tomcat and Apache's proxy write a worker's name; or that
// it consists of. Nothing else of the id is looked at.
func TokenIn(id string) (t Token, found bool) {
	i := strings.LastIndexByte(id, '.') + 1
	if len(id)-i != TokenSize {
		return Token{}, false
	}
	for n, c := range []byte(id[i:]) {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return Token{}, false
		}
		t[n] = c
	}
	return t, true
}

// ParseToken returns the token that a text is, and the zero Token if it is none.
func ParseToken(text string) Token {
	t, _ := TokenIn(text)
	if t.String() != text {
		return Token{}
	}
	return t
}

// String returns the token, empty for the zero Token.
func (t Token) String() string {
	if t == (Token{}) {
		return ""
	}
	return string(t[:])
}
