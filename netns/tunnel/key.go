package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// keySize is that of private and public keys, in bytes.
const keySize = 32

// ErrBadKey says that a text is no key.
var ErrBadKey = errors.New("not a WireGuard key")

// PublicKey names a peer. Its text form is base64, as wg(8) has it.
type PublicKey [keySize]byte

// String implements fmt.Stringer.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

func (k PublicKey) hex() string { return hex.EncodeToString(k[:]) }

// ParsePublicKey reads what String returns. ErrBadKey.
func ParsePublicKey(text string) (k PublicKey, err error) {
	b, err := decode(text)
	copy(k[:], b)
	return k, err
}

func decode(text string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err == nil && len(b) != keySize {
		err = fmt.Errorf("%d bytes", len(b))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadKey, err)
	}
	return b, nil
}

// PrivateKey is a node's own.
type PrivateKey struct{ key *ecdh.PrivateKey }

// NewPrivateKey makes a key.
func NewPrivateKey() (PrivateKey, error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	return PrivateKey{k}, err
}

// Public returns the public key.
func (k PrivateKey) Public() (p PublicKey) {
	copy(p[:], k.key.PublicKey().Bytes())
	return p
}

// LoadPrivateKey reads the key of a file, which it makes where there is none: a node keeps
// its key, and only its owner can read it. ErrBadKey.
func LoadPrivateKey(path string) (PrivateKey, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makePrivateKey(path)
	}
	if err != nil {
		return PrivateKey{}, err
	}
	b, err := decode(strings.TrimSpace(string(text)))
	if err != nil {
		return PrivateKey{}, fmt.Errorf("%s: %w: delete the file, and a new one is made", path, err)
	}
	k, err := ecdh.X25519().NewPrivateKey(b)
	return PrivateKey{k}, err
}

// makePrivateKey writes the file at once and whole.
func makePrivateKey(path string) (PrivateKey, error) {
	k, err := NewPrivateKey()
	if err != nil {
		return k, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return k, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".key") // 0600
	if err != nil {
		return k, err
	}
	defer os.Remove(f.Name())
	_, err = fmt.Fprintln(f, base64.StdEncoding.EncodeToString(k.key.Bytes()))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return k, err
	}
	return k, os.Rename(f.Name(), path)
}
