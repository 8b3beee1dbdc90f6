package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	"github.com/ulikunitz/xz" // ours: see internal/xz
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/signature"
	imagestorage "go.podman.io/image/v5/storage"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/storage/internal/fetch"
)

// Sentinels for errors.Is. The error that wraps one names what was tried, what
// happened and what to do.
var (
	// ErrNotUsable means that this host or directory can't hold a store.
	ErrNotUsable = errors.New("storage is not usable")
	// ErrHeld means that another process has the store open.
	ErrHeld = errors.New("storage is held by another process")
	// ErrBadReference means that an image name can't be parsed.
	ErrBadReference = errclass.New(errdefs.ErrInvalidArgument, "bad image reference")
	// ErrImageNotFound means that the image is not in the store, or, from Pull,
	// that the registry does not have it.
	ErrImageNotFound = errclass.New(errdefs.ErrNotFound, "image not found")
	// ErrImageInUse means that a root file system or image mount needs the image.
	ErrImageInUse = errclass.New(errdefs.ErrFailedPrecondition, "image is in use")
	// ErrReadOnlyImage means that the image belongs to an additional, read-only store.
	ErrReadOnlyImage = errclass.New(errdefs.ErrFailedPrecondition, "image is in a read-only store")
	// ErrUnauthorized means that the registry refused the credentials, or wants some.
	ErrUnauthorized = errclass.New(errdefs.ErrPermissionDenied, "registry refused access")
	// ErrRegistryUnavailable means that the registry can't be reached, answers
	// with a server error or sends nothing. Trying again later may help.
	ErrRegistryUnavailable = errors.New("registry unavailable")
	// ErrSignature means that policy.json does not allow the image.
	ErrSignature = errors.New("image rejected by policy")
	// ErrConfiguration means that a file of the user's configuration, as auth.json, can't
	// be used.
	ErrConfiguration = errclass.New(errdefs.ErrFailedPrecondition, "bad configuration of registries")
	// ErrCorrupt means that content does not match its digest or can't be unpacked.
	ErrCorrupt = errclass.New(errdefs.ErrDataLoss, "image is corrupt")
	// ErrUnsupported means that the image is of a kind that can't run here:
	// another platform, Docker schema 1, or no container image at all.
	ErrUnsupported = errclass.New(errdefs.ErrFailedPrecondition, "image is not supported")
	// ErrIDRange means that a file of the image has an owner outside of the
	// user namespace.
	ErrIDRange = errclass.New(errdefs.ErrFailedPrecondition, "image needs more user or group IDs")
	// ErrNoSpace means that the disk (or quota) is full.
	ErrNoSpace = errclass.New(errdefs.ErrResourceExhausted, "no space left for images")
	// ErrRootfsNotFound means that no root file system has this ID.
	ErrRootfsNotFound = errors.New("root file system not found")
	// ErrBadID means that an ID can't name a root file system, or that it
	// already names one of another image.
	ErrBadID = errors.New("bad root file system ID")
)

// errStalled is the cause of a pull's end by lack of progress.
var errStalled = errors.New("no progress")

// classes are the errors by which callers tell failures apart.
var classes = []error{ErrBadReference, ErrImageNotFound, ErrUnauthorized, ErrSignature, ErrCorrupt, ErrUnsupported, ErrTooLarge,
	ErrRegistryUnavailable, ErrIDRange, ErrNoSpace, ErrNotUsable, ErrConfiguration}

// classOf returns the class of err, nil for none.
func classOf(err error) error {
	for _, s := range classes {
		if errors.Is(err, s) {
			return s
		}
	}
	return sentinelOf(err)
}

// classify wraps an error of a pull or load in the sentinel that fits it. An
// error that fits none comes back as it is.
func classify(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if outOfMemory(err.Error()) { // of the process that unpacks a layer
		return fmt.Errorf("%w: unpacking it takes more memory than images.limits.memory allows", ErrTooLarge)
	}
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return fmt.Errorf("%w: %w (%v)", ErrRegistryUnavailable, cause, err)
	} else if cause != nil {
		return fmt.Errorf("%w: %v", cause, err)
	}
	for _, s := range classes {
		if errors.Is(err, s) {
			return err // classified where it happened
		}
	}
	if s := sentinelOf(err); s == ErrIDRange {
		return fmt.Errorf("%w: %s", s, explainOwner(err))
	} else if s != nil && strings.Contains(err.Error(), s.Error()+": ") {
		return &classified{err, s} // the helper that unpacks a layer has said so
	} else if s != nil {
		if hint := hintFor(err); hint != "" {
			return fmt.Errorf("%w: %w; %s", s, err, hint)
		}
		return fmt.Errorf("%w: %w", s, err)
	}
	return err
}

// classified is an error whose text names its class already.
type classified struct{ err, class error }

// Error implements error.
func (c *classified) Error() string { return c.err.Error() }

// Unwrap returns the error and its class.
func (c *classified) Unwrap() []error { return []error{c.err, c.class} }

func sentinelOf(err error) error {
	if err == nil {
		return nil
	}
	var policy signature.PolicyRequirementError
	var invalid signature.InvalidSignatureError
	var when *time.ParseError
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return ErrNoSpace
	case errors.As(err, &policy), errors.As(err, &invalid):
		return ErrSignature
	case errors.Is(err, xz.ErrDictionary):
		return ErrUnsupported
	case errors.As(err, &when), errors.As(err, &syntax), errors.As(err, &kind):
		return ErrCorrupt // a manifest or configuration
	case errors.Is(err, imagestorage.ErrBlobDigestMismatch), errors.Is(err, imagestorage.ErrBlobSizeMismatch):
		return ErrCorrupt
	}
	if s := registrySentinel(err); s != nil {
		return s
	}
	if s := textSentinel(err); s != nil {
		return s
	}
	if corruptBlob(err) {
		return ErrCorrupt
	}
	if s := networkSentinel(err); s != nil {
		return s
	}
	if strings.Contains(err.Error(), "read zstd:chunked manifest: ") {
		return ErrCorrupt // a table of contents that is not what the manifest states of it
	}
	if strings.Contains(err.Error(), "Source image rejected: ") {
		return ErrSignature // there is no telling whether the policy would allow it
	}
	return nil
}

// registrySentinel classifies by what a registry answered: the error code of the
// distribution specification first, the HTTP status otherwise.
func registrySentinel(err error) error {
	for _, s := range []struct{ of, is error }{
		{fetch.ErrUnauthorized, ErrUnauthorized}, {fetch.ErrNotFound, ErrImageNotFound},
		{fetch.ErrUnavailable, ErrRegistryUnavailable}, {fetch.ErrNotRegistry, ErrRegistryUnavailable},
	} {
		if errors.Is(err, s.of) {
			return s.is
		}
	}
	var unauthorized docker.ErrUnauthorizedForCredentials
	if errors.As(err, &unauthorized) {
		return ErrUnauthorized
	}
	if errors.Is(err, docker.ErrTooManyRequests) {
		return ErrRegistryUnavailable
	}
	var list errcode.Errors
	if errors.As(err, &list) && len(list) > 0 {
		return registrySentinel(list[0])
	}
	var coder errcode.ErrorCoder
	if errors.As(err, &coder) {
		switch coder.ErrorCode() {
		case errcode.ErrorCodeUnauthorized, errcode.ErrorCodeDenied:
			return ErrUnauthorized
		case errcode.ErrorCodeTooManyRequests, errcode.ErrorCodeUnavailable:
			return ErrRegistryUnavailable
		case v2.ErrorCodeManifestUnknown, v2.ErrorCodeNameUnknown, v2.ErrorCodeNameInvalid, v2.ErrorCodeTagInvalid:
			return ErrImageNotFound
		case v2.ErrorCodeBlobUnknown, v2.ErrorCodeDigestInvalid:
			return ErrCorrupt
		}
	}
	var status docker.UnexpectedHTTPStatusError
	if errors.As(err, &status) {
		return statusSentinel(status.StatusCode)
	}
	return nil
}

func statusSentinel(code int) error {
	switch {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return ErrUnauthorized
	case code == http.StatusNotFound:
		return ErrImageNotFound
	case code == http.StatusTooManyRequests, code >= 500:
		return ErrRegistryUnavailable
	}
	return nil
}

// textSentinel classifies by text, where the libraries offer nothing else: layers
// are unpacked by a child process whose error is what it printed, and digest
// and status errors of containers/image have no exported type.
func textSentinel(err error) error {
	text := err.Error()
	for _, t := range []struct {
		part     string
		sentinel error
	}{
		{attributesRefused, ErrUnsupported},
		{"no space left on device", ErrNoSpace},
		{"disk quota exceeded", ErrNoSpace},
		{"file too large", ErrTooLarge},
		{"short write", ErrTooLarge},                    // what gzip's reader makes of the same
		{"exceeded maximum allowed size", ErrTooLarge},  // of a manifest or configuration, as the library reads them
		{"Frame requires too much memory", ErrTooLarge}, // zstd(1), where it is installed
		{"window size exceeded", ErrTooLarge},
		{"insufficient UIDs or GIDs", ErrIDRange},
		{"invalid mixed OCI image", ErrUnsupported},
		{"image-specific operation on artifact", ErrUnsupported},
		{"unsupported digest algorithm", ErrUnsupported},
		{"xz: data is", ErrCorrupt},
		{`zstd: /*stdin*\`, ErrCorrupt}, // zstd(1) as well
		{"archive/tar: ", ErrCorrupt},
		{"unpacking failed", ErrCorrupt},
		{"Digest did not match", ErrCorrupt},
		{"digest mismatch", ErrCorrupt},
		{"corrupt input", ErrCorrupt},
		{"invalid checksum", ErrCorrupt},
		{"gzip: invalid", ErrCorrupt},
		{"magic number mismatch", ErrCorrupt},
		{"premature end", ErrCorrupt}, // of the program zstd
		{"does not match provided manifest digest", ErrCorrupt},
		{"does not match expected", ErrCorrupt}, // of a configuration or a layer
		{"does not match config's DiffID", ErrCorrupt},
		{"StatusCode: 404", ErrImageNotFound},
		{"StatusCode: 401", ErrUnauthorized},
		{"StatusCode: 403", ErrUnauthorized},
		{"StatusCode: 429", ErrRegistryUnavailable},
		{"StatusCode: 5", ErrRegistryUnavailable},
	} {
		if strings.Contains(text, t.part) {
			return t.sentinel
		}
	}
	return nil
}

// corruptBlob reports whether a blob ended too early although it came whole: what the
// library reads from a registry has words of its own where the connection broke.
func corruptBlob(err error) bool {
	text := err.Error()
	return errors.Is(err, io.ErrUnexpectedEOF) && strings.Contains(text, "storing blob to file") && !strings.Contains(text, "happened during read")
}

func networkSentinel(err error) error {
	var opErr *net.OpError
	var urlErr *url.Error
	if errors.As(err, &opErr) || errors.As(err, &urlErr) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return ErrRegistryUnavailable
	}
	return nil
}

// hintFor returns what to do about a common error, or "".
func hintFor(err error) string {
	text := err.Error()
	switch {
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return "for a registry without TLS set insecure = true for it in registries.conf"
	case strings.Contains(text, "x509: certificate signed by unknown authority"):
		return "put the registry's CA certificate in certs.d/HOST:PORT/ca.crt"
	}
	return ""
}

var wantedOwner = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`requested (-?\d+):(-?\d+) for ([^)]+)\)`)
})

// explainOwner reports which file of an image has an owner that is not mapped. The
// library's text gives advice for Podman, so only its facts are kept.
func explainOwner(err error) string {
	m := wantedOwner().FindStringSubmatch(err.Error())
	if m == nil {
		return err.Error()
	}
	return fmt.Sprintf("%s belongs to user %s and group %s, but this user namespace has %s; or set ignore_chown_errors", m[3], m[1], m[2], idRanges())
}
