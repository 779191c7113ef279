// Package vddk opens virtual disks.
//
// VMware's kit of that name (Virtual Disk Development Kit) is one way among several; this package is the
// vocabulary they share. A [Transport] is a way to reach a disk of a machine (NFC over the network, VMware's
// own library, HotAdd), a [Disk] is one disk opened through it, and [Open] tries transports in the stated order.
// What is hidden: which transport serves a disk. Callers read and write bytes at byte offsets.
//
// The transports live below: nfc (pure Go), vixdisklib (VMware's library in a helper process), hotadd.
// mount reads guest file systems from any disk.
package vddk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// SectorSize is the unit of every virtual disk's addresses: offsets and lengths of reads and writes are
// multiples of it (VDDK guide, "VixDiskLib_Read"; NFC: spec of IO messages).
const SectorSize = 512

// Disk is a virtual disk opened for reading or writing.
//
// What a Disk guarantees (the suite in disktest holds every transport to it):
//   - ReadAt and WriteAt are safe for concurrent use; they fill or take the whole buffer, or fail.
//   - Offsets and lengths are multiples of [SectorSize]; others fail with [ErrAlignment]. Reading at or beyond
//     Size gives io.EOF, a read crossing Size gives the bytes up to it and io.EOF.
//   - A disk opened for reading refuses WriteAt with [ErrReadOnly].
//   - The context given to Open governs the disk's whole life: when it ends, calls in flight and later ones
//     fail with its cause. Close still works, and is always necessary.
//   - Close waits for calls in flight or fails them; it is safe to call twice. Writes are durable once Close
//     (or [Flusher]'s Flush, where there is one) returned nil.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() int64 // capacity in bytes
}

// Allocator is a Disk that knows which of its bytes are allocated. The rest reads as zeros.
type Allocator interface {
	// Allocated returns the allocated part of e, rounded outwards to the transport's unit and clipped to the disk.
	Allocated(ctx context.Context, e extent.Extent) (extent.Set, error)
}

// Flusher is a Disk that can make its writes durable before Close.
type Flusher interface {
	Flush(ctx context.Context) error
}

// Lender is a Disk that has memory of its own, which it fills and empties without a copy.
type Lender interface {
	// Lend gives n bytes to be read into and written from; nil: it has none to spare, or not so many at once. They are
	// the caller's until it gives them back, however long after the disk was closed. Only after a call that failed may
	// what was to be read into go on changing till then.
	Lend(n int) (p []byte, giveBack func())
}

// Describer is a Disk that tells how it is served, for events and reports: for example "nbdssl esx1:902".
type Describer interface{ Describe() string }

// Spec names the disk to open. Which fields are needed depends on the transport; the engine fills all of them.
type Spec struct {
	VM       string // managed object id of the machine, for example "vm-42"
	Snapshot string // managed object id of the snapshot the disk belongs to; empty: the machine's own disk
	Key      int32  // device key of the virtual disk in the machine, for example 2000
	Path     string // datastore path of the link to open, for example "[ds1] web/web.vmdk"
	Capacity int64  // bytes, as vSphere tells; 0: unknown
	Write    bool
	// Encrypted says that vSphere keeps the disk encrypted, and hands its bytes out in clear to who may read it: no
	// connection may carry them that is not encrypted itself.
	Encrypted bool
}

// ErrInClear is why a transport leaves an encrypted disk to another.
var ErrInClear = fmt.Errorf("the disk is encrypted, and its bytes would cross the network in clear: %w", ErrUnsupported)

func (s Spec) String() string {
	if s.Snapshot != "" {
		return fmt.Sprintf("%s (%s, disk %d)", s.Path, s.Snapshot, s.Key)
	}
	return fmt.Sprintf("%s (%s, disk %d)", s.Path, s.VM, s.Key)
}

// Transport is a way to reach disks.
type Transport interface {
	Name() string // as VMware spells it: nbdssl, nbd, hotadd, san, file
	// Open opens the disk. ctx lives as long as the disk, see [Disk].
	Open(ctx context.Context, spec Spec) (Disk, error)
}

// Questions callers ask of a transport's error.
var (
	ErrUnsupported    = errors.New("not supported by this transport")            // try the next transport
	ErrNotFound       = errors.New("disk not found")                             // no such path or key
	ErrLocked         = errors.New("disk is locked by another user")             // somebody else holds it open
	ErrPermission     = errors.New("permission denied")                          // the ticket or the account lacks a right
	ErrHostMemory     = errors.New("host has no memory for another NFC session") // back off and retry
	ErrNoSpace        = errors.New("the datastore has no space left")            // writing to a thin disk
	ErrHost           = errors.New("the disk server refuses")                    // for a reason that is none of the others
	ErrConnectionLost = errors.New("connection to the disk server was lost")
	ErrReadOnly       = errors.New("disk is open for reading only")
	ErrAlignment      = errors.New("offset and length must be multiples of 512")
	ErrClosed         = errors.New("disk is closed")
)

// Open opens spec through the first of the transports that can, in order. Each refusal is told to refused
// (nil: nobody listens) before the next transport is tried. When none can, the error joins all reasons.
// A context that ended is not a refusal: it stops the search.
func Open(ctx context.Context, spec Spec, transports []Transport, refused func(transport string, err error)) (Disk, error) {
	var tried []string
	var errs []error
	for _, t := range transports {
		d, err := t.Open(ctx, spec)
		if err == nil {
			return d, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("open %s: %w", spec, context.Cause(ctx))
		}
		tried, errs = append(tried, t.Name()), append(errs, fmt.Errorf("%s: %w", t.Name(), err))
		if refused != nil {
			refused(t.Name(), err)
		}
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("open %s: no transport is configured: %w", spec, ErrUnsupported)
	}
	return nil, fmt.Errorf("open %s, tried %s: %w", spec, strings.Join(tried, ", "), errors.Join(errs...))
}
