package backendtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Memory is a backend that keeps its files in memory. It passes [Run], so what works on it works on the others.
type Memory struct {
	mu    sync.RWMutex
	files map[backend.Handle][]byte // values are never changed, only replaced
}

var _ backend.Backend = (*Memory)(nil)

// NewMemory gives an empty store.
func NewMemory() *Memory { return &Memory{files: make(map[backend.Handle][]byte)} }

// Clone is a copy that shares nothing with m from now on: what a crash at this moment would leave.
func (m *Memory) Clone() *Memory {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return &Memory{files: maps.Clone(m.files)}
}

// Handles lists what is stored, sorted by type and name.
func (m *Memory) Handles() []backend.Handle {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(m.files), func(a, b backend.Handle) int {
		return bytes.Compare([]byte(a.String()), []byte(b.String()))
	})
}

// Replace puts data where h is, as only a broken store or an attacker would: the way tests do damage.
// nil data makes the file vanish.
func (m *Memory) Replace(h backend.Handle, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if data == nil {
		delete(m.files, h)
		return
	}
	m.files[h] = bytes.Clone(data)
}

// Bytes is a copy of what is stored as h, nil if there is no such file.
func (m *Memory) Bytes(h backend.Handle) []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.files[h])
}

// Save stores a copy of data.
func (m *Memory) Save(ctx context.Context, h backend.Handle, data []byte) error {
	if err := begin(ctx, h); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.files[h]; ok {
		if h.Type == restic.ConfigFile || len(old) != len(data) {
			return fmt.Errorf("save %s: %w", h, backend.ErrExist)
		}
		return nil
	}
	m.files[h] = append([]byte{}, data...)
	return nil
}

// Load reads a range.
func (m *Memory) Load(ctx context.Context, h backend.Handle, offset, length int64, fn func(io.Reader) error) error {
	data, err := m.get(ctx, h)
	if err != nil {
		return err
	}
	n, err := backend.CheckRange(offset, length, int64(len(data)))
	if err != nil {
		return fmt.Errorf("load %s: %w", h, err)
	}
	if err := backend.Deliver(ctx, bytes.NewReader(data[offset:offset+n]), n, fn); err != nil {
		return fmt.Errorf("load %s: %w", h, err)
	}
	return nil
}

func (m *Memory) get(ctx context.Context, h backend.Handle) ([]byte, error) {
	if err := begin(ctx, h); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	data, ok := m.files[h]
	if !ok {
		return nil, fmt.Errorf("%s: %w", h, backend.ErrNotExist)
	}
	return data, nil
}

// Stat tells a file's size.
func (m *Memory) Stat(ctx context.Context, h backend.Handle) (backend.FileInfo, error) {
	data, err := m.get(ctx, h)
	if err != nil {
		return backend.FileInfo{}, err
	}
	return backend.FileInfo{Name: h.Name, Size: int64(len(data))}, nil
}

// List tells the files of a type in the order of their names.
func (m *Memory) List(ctx context.Context, t restic.FileType, fn func(backend.FileInfo) error) error {
	for _, h := range m.Handles() {
		if h.Type != t {
			continue
		}
		info, err := m.Stat(ctx, h)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			continue // removed since
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// Remove deletes a file.
func (m *Memory) Remove(ctx context.Context, h backend.Handle) error {
	if _, err := m.get(ctx, h); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.files, h)
	return nil
}

// Retained is never.
func (m *Memory) Retained(context.Context, backend.Handle) (time.Time, error) {
	return time.Time{}, nil
}

// Connections is what tests need to see concurrency.
func (m *Memory) Connections() int { return 4 }

// Location is the word memory.
func (m *Memory) Location() string { return "memory" }

// Close keeps the files: a closed store opened again is the same store.
func (m *Memory) Close() error { return nil }

func begin(ctx context.Context, h backend.Handle) error {
	if err := h.Check(); err != nil {
		return err
	}
	return context.Cause(ctx)
}
