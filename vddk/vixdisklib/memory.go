package vixdisklib

import (
	"sync"
	"unsafe"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/wire"
)

// memory is what this process and a helper both map, in pieces of which each holds one request.
//
// A piece has users: who took it, a caller or a call, and transfers under way. It is free when the last has dropped it,
// so that a late answer never writes into what is somebody else's by then. What is lent outlives the helper: the mapping
// stays until the helper is gone and everything is given back.
type memory struct {
	bytes []byte
	unmap func() error

	mu    sync.Mutex
	users [wire.Pieces]uint16
	free  []uint32 // the piece dropped last is taken next: it is still in the processor's cache
	lent  int      // pieces that callers hold
	gone  bool     // the helper is, so that nothing is lent any more
}

func newMemory(bytes []byte, unmap func() error) *memory {
	m := &memory{bytes: bytes, unmap: unmap, free: make([]uint32, wire.Pieces)}
	for i := range m.free {
		m.free[i] = wire.Pieces - 1 - uint32(i)
	}
	return m
}

// piece is the memory of a piece.
func (m *memory) piece(n uint32) []byte {
	at := int(n) * wire.PieceBytes
	return m.bytes[at : at+wire.PieceBytes : at+wire.PieceBytes]
}

// take makes the caller the user of a free piece. There always is one: requests in flight, and what is lent, are bounded,
// see wire.Pieces.
func (m *memory) take() uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.takeLocked()
}

func (m *memory) takeLocked() uint32 {
	k := len(m.free) - 1
	n := m.free[k]
	m.free = m.free[:k]
	m.users[n] = 1
	return n
}

// use adds a user to a piece that has one.
func (m *memory) use(n uint32) {
	m.mu.Lock()
	m.users[n]++
	m.mu.Unlock()
}

// drop takes a user of a piece away.
func (m *memory) drop(n uint32) {
	m.mu.Lock()
	m.dropLocked(n)
	m.mu.Unlock()
}

func (m *memory) dropLocked(n uint32) {
	if m.users[n]--; m.users[n] == 0 {
		m.free = append(m.free, n)
	}
}

// lend gives n bytes to a caller; nil when that is more than a piece, or when enough is lent.
func (m *memory) lend(n int) (p []byte, giveBack func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > wire.PieceBytes || m.lent == wire.Lendable || m.gone {
		return nil, nil
	}
	m.lent++
	k := m.takeLocked()
	return m.piece(k)[:n:n], sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.dropLocked(k)
		if m.lent--; m.gone && m.lent == 0 {
			_ = m.unmap() // an address that was mapped is unmapped: there is nothing else to go wrong
		}
	})
}

// find tells at which offset of the memory p lies, if it does, and the library can be given it: at a whole sector.
func (m *memory) find(p []byte) (at int, ok bool) {
	d := uintptr(unsafe.Pointer(unsafe.SliceData(p))) - uintptr(unsafe.Pointer(unsafe.SliceData(m.bytes)))
	return int(d), d < uintptr(len(m.bytes)) && d%vddk.SectorSize == 0
}

// end is told once the helper is gone.
func (m *memory) end() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = true
	if m.lent > 0 {
		return nil
	}
	return m.unmap()
}
