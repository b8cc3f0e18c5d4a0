package clientip

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"sync"

	"github.com/handfast/handfast/fdpass/forwarded"
)

// Name is what a token says: which worker has made a session's id, of all that the master and its upgrades have started. The zero
// Name is none.
type Name struct {
	Slot       int // where it was, 0 to hash.MaxSlots-1
	Generation int
	Start      uint32 // which start of a worker it was; the first is 1
}

// Names makes tokens and reads them. A token is one block of a cipher, AES with 128 bits, of a name and of zeros, in base32. Who
// does not know the secret can neither make one nor change one: of 2^80 inventions one is taken for a token
// (encode-then-encipher: Bellare and Rogaway, 2000).
//
// It may be used by several goroutines. Reading allocates nothing.
type Names struct {
	block   cipher.Block
	buffers sync.Pool // of *blocks: what a cipher is given escapes
}

type blocks struct{ plain, sealed [aes.BlockSize]byte }

// SecretSize is the length of a secret of Names, in bytes.
const SecretSize = 16

// NewNames returns the names with a secret.
func NewNames(secret [SecretSize]byte) *Names {
	block, _ := aes.NewCipher(secret[:]) // cannot fail with keys of this length
	return &Names{block: block, buffers: sync.Pool{New: func() any { return new(blocks) }}}
}

// Of the block of a name: slot, generation and start in network byte order. The rest is zero.
const (
	slotAt       = 0
	generationAt = 2
	startAt      = 6
	nameEnds     = 10
)

// Token returns the token of a name.
func (n *Names) Token(name Name) forwarded.Token {
	b := new(blocks)
	binary.BigEndian.PutUint16(b.plain[slotAt:], uint16(name.Slot))
	binary.BigEndian.PutUint32(b.plain[generationAt:], uint32(name.Generation))
	binary.BigEndian.PutUint32(b.plain[startAt:], name.Start)
	n.block.Encrypt(b.sealed[:], b.plain[:])
	return forwarded.MakeToken(b.sealed)
}

// Name returns what a token says; found is false if it was not made with the secret.
func (n *Names) Name(t forwarded.Token) (name Name, found bool) {
	b := n.buffers.Get().(*blocks)
	defer n.buffers.Put(b)
	b.sealed = t.Bytes()
	n.block.Decrypt(b.plain[:], b.sealed[:])
	for _, zero := range b.plain[nameEnds:] {
		if zero != 0 {
			return Name{}, false
		}
	}
	return Name{
		Slot:       int(binary.BigEndian.Uint16(b.plain[slotAt:])),
		Generation: int(binary.BigEndian.Uint32(b.plain[generationAt:])),
		Start:      binary.BigEndian.Uint32(b.plain[startAt:]),
	}, true
}
