//go:build linux && amd64

package library

import (
	"fmt"
	"unsafe"
)

// Connection is a connection of the library's.
type Connection uintptr

// Disk is an open disk of the library's.
type Disk uintptr

// temporary runs fn with C strings that live as long as the call.
func temporary(ss []string, fn func(p []unsafe.Pointer) error) error {
	size := 1
	for _, s := range ss {
		size += len(s) + 1
	}
	a, err := newArena(size)
	if err != nil {
		return err
	}
	ps := make([]unsafe.Pointer, len(ss))
	for i, s := range ss {
		ps[i] = a.str(s)
	}
	if err := fn(ps); err != nil {
		return joinFree(err, a)
	}
	return a.free()
}

// Access says how a connection is used.
type Access struct {
	ReadOnly bool
	Snapshot string // managed object id; empty: none
	Modes    string // by colons, never empty: the library's own default prefers SAN and fails later
}

// Connect connects.
func (l *Library) Connect(p *Params, how Access) (Connection, error) {
	var out uintptr
	err := temporary([]string{how.Snapshot, how.Modes}, func(s []unsafe.Pointer) error {
		if how.Snapshot == "" {
			s[0] = nil
		}
		ro := uint8(0)
		if how.ReadOnly {
			ro = 1
		}
		return l.check("ConnectEx", l.f.ConnectEx(p.p, ro, s[0], s[1], unsafe.Pointer(&out)))
	})
	return Connection(out), err
}

// Disconnect ends a connection.
func (l *Library) Disconnect(c Connection) error {
	return l.check("Disconnect", l.f.Disconnect(uintptr(c)))
}

// Prepare keeps the machine from being moved.
func (l *Library) Prepare(p *Params, identity string) error {
	return temporary([]string{identity}, func(s []unsafe.Pointer) error {
		return l.check("PrepareForAccess", l.f.PrepareForAccess(p.p, s[0]))
	})
}

// EndAccess undoes Prepare.
func (l *Library) EndAccess(p *Params, identity string) error {
	return temporary([]string{identity}, func(s []unsafe.Pointer) error {
		return l.check("EndAccess", l.f.EndAccess(p.p, s[0]))
	})
}

// Cleanup detaches what earlier runs left attached for HotAdd.
func (l *Library) Cleanup(p *Params) (cleaned, remaining uint32, err error) {
	err = l.check("Cleanup", l.f.Cleanup(p.p, unsafe.Pointer(&cleaned), unsafe.Pointer(&remaining)))
	return cleaned, remaining, err
}

// Open opens a disk.
func (l *Library) Open(c Connection, path string, flags uint32) (Disk, error) {
	var out uintptr
	err := temporary([]string{path}, func(s []unsafe.Pointer) error {
		return l.check("Open", l.f.Open(uintptr(c), s[0], flags, unsafe.Pointer(&out)))
	})
	return Disk(out), err
}

// Close closes a disk. No transfer may be in flight.
func (l *Library) Close(d Disk) error { return l.check("Close", l.f.Close(uintptr(d))) }

// Sectors is the capacity in sectors of 512 bytes. Of the Info structure the capacity at 24 is in every version; the size
// of logical sectors at 56 is 7.0's, and reading it from an older library would be reading foreign memory. A disk whose
// sectors are of another size is refused: in which of them the library then counts is told nowhere.
func (l *Library) Sectors(d Disk) (uint64, error) {
	var info unsafe.Pointer
	if err := l.check("GetInfo", l.f.GetInfo(uintptr(d), unsafe.Pointer(&info))); err != nil {
		return 0, err
	}
	defer l.f.FreeInfo(info)
	if l.Major >= 7 {
		if size := *(*uint32)(unsafe.Add(info, 56)); size != 0 && size != sector {
			return 0, &Error{Call: "GetInfo", Full: NotSupported, Text: fmt.Sprintf("the disk has sectors of %d bytes, and only %d is supported", size, sector)}
		}
	}
	return *(*uint64)(unsafe.Add(info, 24)), nil
}

const sector = 512 // bytes

// Mode is the transport the disk is served by.
func (l *Library) Mode(d Disk) string { return text(l.f.GetTransportMode(uintptr(d))) }

// Transfer moves sectors between a disk and memory.
type Transfer struct {
	Write bool
	First uint64
	Buf   []byte // whole sectors, outside Go's heap, page-aligned
}

// Start begins a transfer. Its memory stays the library's until done was called, exactly once, from any thread, perhaps
// before Start returns.
func (l *Library) Start(d Disk, t Transfer, done func(error)) {
	n := uint64(len(t.Buf) / sector)
	p := unsafe.Pointer(&t.Buf[0])
	call, start := "ReadAsync", l.f.ReadAsync
	if t.Write {
		call, start = "WriteAsync", l.f.WriteAsync
	}
	l.mu.Lock()
	l.last++
	id := l.last
	l.inFlight[id] = func(code uint64) { done(l.check(call, code)) }
	l.mu.Unlock()
	code := start(uintptr(d), t.First, n, p, l.done, id)
	if Code(code) != Async {
		// Refused; or done already by a library that says success for it. Whichever is first counts.
		l.complete(id, code)
	}
}

// complete tells who waits for a transfer, if somebody still does.
func (l *Library) complete(id uintptr, code uint64) {
	l.mu.Lock()
	done := l.inFlight[id]
	delete(l.inFlight, id)
	l.mu.Unlock()
	if done != nil {
		done(code)
	}
}

// Wait waits for all transfers of a disk.
func (l *Library) Wait(d Disk) error {
	return l.check("Wait", l.f.Wait(uintptr(d)))
}

// Flush makes writes durable, after Wait.
func (l *Library) Flush(d Disk) error { return l.check("Flush", l.f.Flush(uintptr(d))) }

// Blocks lists the allocated ranges of [first, first+n) in sectors: first, sectors. All are multiples of chunk sectors,
// at least 128; n may be at most 524288 chunks.
func (l *Library) Blocks(d Disk, first, n, chunk uint64) ([][2]uint64, error) {
	var list unsafe.Pointer
	if err := l.check("QueryAllocatedBlocks", l.f.QueryAllocatedBlocks(uintptr(d), first, n, chunk, unsafe.Pointer(&list))); err != nil {
		return nil, err
	}
	// BlockList: number at 0 (u32), then from 8 on pairs of u64.
	k := *(*uint32)(list)
	out := make([][2]uint64, k)
	if k > 0 {
		copy(out, unsafe.Slice((*[2]uint64)(unsafe.Add(list, 8)), k))
	}
	return out, l.check("FreeBlockList", l.f.FreeBlockList(list))
}
