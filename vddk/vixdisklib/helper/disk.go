//go:build linux && amd64

package helper

import (
	"fmt"
	"runtime"

	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/library"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/wire"
)

// disk is an open disk and its thread.
type disk struct {
	s      *server
	handle library.Disk
	work   chan func() // closed by close
	ended  chan struct{}
}

// queue is how many requests may wait for a disk's thread; the client has at most wire.Depth transfers under way, and a
// flush or a question now and then.
const queue = 4 * wire.Depth

// run is the disk's thread. It was made after the library was initialised, as thread-local storage of version 7 wants.
func (d *disk) run() {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	defer close(d.ended)
	for f := range d.work {
		f()
	}
}

// do has the disk's thread do something and waits.
func (d *disk) do(f func()) {
	done := make(chan struct{})
	d.work <- func() { defer close(done); f() }
	<-done
}

// onDisk has a disk's thread work.
func (s *server) onDisk(number uint32, request uint64, f func(*disk)) error {
	if number >= wire.Disks {
		return fmt.Errorf("disk %d: %w", number, wire.ErrFrame)
	}
	if err := s.post(number, f); err != nil {
		s.answer(request, nil, err)
	}
	return nil
}

// post gives work to a disk's thread. It never waits: who listens to the client posts for all disks.
func (s *server) post(number uint32, f func(*disk)) error {
	// close takes the disk out of the table under the same lock before it closes work.
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.disks[number]
	if d == nil {
		return fmt.Errorf("disk %d is not open", number)
	}
	select {
	case d.work <- func() { f(d) }:
		return nil
	default:
		return fmt.Errorf("disk %d: more than %d requests wait", number, queue)
	}
}

func (s *server) open(o wire.Opening) (any, error) {
	if o.Disk >= wire.Disks || s.disks[o.Disk] != nil || !s.connected {
		return nil, fmt.Errorf("disk %d cannot be opened now", o.Disk)
	}
	h, err := s.lib.Open(s.conn, o.Path, o.Flags)
	if err != nil {
		return nil, err
	}
	d := &disk{s: s, handle: h, work: make(chan func(), queue), ended: make(chan struct{})}
	go d.run()
	var opened wire.Opened
	d.do(func() {
		if opened.Sectors, err = s.lib.Sectors(h); err == nil {
			opened.Mode = s.lib.Mode(h)
		}
	})
	s.mu.Lock()
	s.disks[o.Disk] = d
	s.mu.Unlock()
	if err != nil {
		_, _ = s.close(wire.One{Disk: o.Disk}) // the reason is told already
	}
	return opened, err
}

func (s *server) close(o wire.One) (any, error) {
	if o.Disk >= wire.Disks || s.disks[o.Disk] == nil {
		return nil, fmt.Errorf("disk %d is not open", o.Disk)
	}
	s.mu.Lock()
	d := s.disks[o.Disk]
	s.disks[o.Disk] = nil
	s.mu.Unlock()
	var err error
	d.do(func() { err = s.lib.Wait(d.handle) })
	close(d.work)
	<-d.ended
	if e := s.lib.Close(d.handle); e != nil {
		err = e
	}
	return nil, err
}

func (d *disk) transfer(f wire.Frame, t wire.Transfer) {
	end := t.At + uint64(t.Sectors)*wire.SectorSize
	buf := d.s.memory[t.At:end:end]
	d.s.lib.Start(d.handle, library.Transfer{Write: f.Kind == wire.Write, First: t.First, Buf: buf}, func(err error) {
		d.s.answer(f.Number, nil, err)
	})
}

func (d *disk) flush(number uint64) {
	err := d.s.lib.Wait(d.handle)
	if err == nil {
		err = d.s.lib.Flush(d.handle)
	}
	d.s.answer(number, nil, err)
}

func (d *disk) blocks(number uint64, r wire.Range) {
	if !d.s.lib.Allocation {
		d.s.answer(number, nil, &library.Error{Call: "QueryAllocatedBlocks", Full: library.NotSupported, Text: "this version of the library does not have it"})
		return
	}
	list, err := d.s.lib.Blocks(d.handle, r.First, r.Sectors, wire.ChunkSize/wire.SectorSize)
	if err != nil {
		d.s.answer(number, nil, err)
		return
	}
	// Neighbours become one: what is sent is bounded by every other chunk.
	merged := list[:0]
	for _, b := range list {
		if n := len(merged); n > 0 && merged[n-1][0]+merged[n-1][1] == b[0] {
			merged[n-1][1] += b[1]
		} else {
			merged = append(merged, b)
		}
	}
	d.s.out.Send(wire.Frame{Kind: wire.Reply, Number: number, Body: wire.AppendBlocks(wire.EncodeReply(0, nil), merged)})
}
