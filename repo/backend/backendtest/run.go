// Package backendtest is how backends are tested, and what tests of their users run on.
//
// [Run] and [RunAppendOnly] hold a backend to the guarantees listed at backend.Backend. [Memory] is a store that
// keeps them without a disk; [Inject] puts faults in front of any store: values such as [Fail], [Crash] or
// [LoseAnswer], narrowed with [On]. Package peers starts the real servers.
package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

var types = []restic.FileType{restic.KeyFile, restic.LockFile, restic.SnapshotFile, restic.IndexFile, restic.PackFile}

// serial makes the content of every file of a test process its own.
var serial atomic.Uint64

// Bytes gives n bytes that no other call gives (n of 16 and more).
func Bytes(n int) []byte {
	r := rand.NewChaCha8([32]byte{1, 2, 3})
	data := make([]byte, n)
	_, _ = r.Read(data) // never fails
	copy(data, fmt.Sprintf("%016x", serial.Add(1)))
	return data
}

// HandleOf names data as the repository format does.
func HandleOf(t restic.FileType, data []byte) backend.Handle {
	if t == restic.ConfigFile {
		return backend.Handle{Type: t}
	}
	return backend.Handle{Type: t, Name: restic.Hash(data).String()}
}

// Run holds a backend to its guarantees. open gives an empty store, ready to be written to; Run closes it.
func Run(t *testing.T, open func(t *testing.T) backend.Backend) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, backend.Backend)
	}{
		{"keeps files of every type and size", keepsFiles},
		{"gives empty listings where nothing was saved", listsNothing},
		{"loads exact ranges", loadsRanges},
		{"reports missing files", reportsMissing},
		{"never overwrites", neverOverwrites},
		{"saves config once", savesConfigOnce},
		{"lets one of many inits win", letsOneInitWin},
		{"lists each file once with its size", listsFiles},
		{"returns the callback's error", returnsCallbackError},
		{"removes files", removesFiles},
		{"refuses handles that are no file's", refusesHandles},
		{"returns when its context ends", returnsWhenCancelled},
		{"bears concurrent use", bearsConcurrency},
	} {
		t.Run(strings.ReplaceAll(test.name, " ", "_"), func(t *testing.T) {
			b := open(t)
			defer func() {
				if err := b.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}()
			test.run(t, b)
		})
	}
}

func save(t *testing.T, b backend.Backend, ft restic.FileType, data []byte) backend.Handle {
	t.Helper()
	h := HandleOf(ft, data)
	if err := b.Save(t.Context(), h, data); err != nil {
		t.Fatalf("Save(%s, %d bytes): %v", h, len(data), err)
	}
	return h
}

func load(t *testing.T, b backend.Backend, h backend.Handle, offset, length int64) ([]byte, error) {
	t.Helper()
	var got []byte
	err := b.Load(t.Context(), h, offset, length, func(r io.Reader) (err error) {
		got, err = io.ReadAll(r)
		return err
	})
	return got, err
}

func mustLoad(t *testing.T, b backend.Backend, h backend.Handle) []byte {
	t.Helper()
	data, err := load(t, b, h, 0, 0)
	if err != nil {
		t.Fatalf("Load(%s): %v", h, err)
	}
	return data
}

func list(t *testing.T, b backend.Backend, ft restic.FileType) map[string]int64 {
	t.Helper()
	got := map[string]int64{}
	err := b.List(t.Context(), ft, func(info backend.FileInfo) error {
		if _, twice := got[info.Name]; twice {
			t.Errorf("List(%s) tells %s twice", ft, info.Name)
		}
		got[info.Name] = info.Size
		return nil
	})
	if err != nil {
		t.Fatalf("List(%s): %v", ft, err)
	}
	return got
}

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %q", what, err, want)
	}
}

func keepsFiles(t *testing.T, b backend.Backend) {
	check := func(ft restic.FileType, data []byte) {
		t.Helper()
		before := bytes.Clone(data)
		h := save(t, b, ft, data)
		if !bytes.Equal(data, before) {
			t.Errorf("Save(%s) changed its data", h)
		}
		clear(data) // Save must not have kept it
		if got := mustLoad(t, b, h); !bytes.Equal(got, before) {
			t.Errorf("Load(%s) gives %d bytes that are not the %d saved ones", h, len(got), len(before))
		}
		info, err := b.Stat(t.Context(), h)
		if err != nil || info.Size != int64(len(before)) || info.Name != h.Name {
			t.Errorf("Stat(%s) = %+v, %v; want size %d", h, info, err, len(before))
		}
	}
	check(restic.ConfigFile, Bytes(155))
	for _, ft := range types {
		check(ft, Bytes(1000))
	}
	check(restic.LockFile, []byte{}) // restic leaves empty lock files when a disk is full
	check(restic.PackFile, []byte{7})
	check(restic.PackFile, Bytes(6<<20+13))
}

func listsNothing(t *testing.T, b backend.Backend) {
	for _, ft := range types {
		if got := list(t, b, ft); len(got) != 0 {
			t.Errorf("List(%s) of an empty store: %v", ft, got)
		}
	}
}

func loadsRanges(t *testing.T, b backend.Backend) {
	const size = 300_000
	data := Bytes(size)
	h := save(t, b, restic.PackFile, data)
	for _, r := range [][2]int64{{0, 0}, {0, 1}, {0, size}, {1, 0}, {size - 1, 0}, {size - 1, 1}, {4095, 2}, {65536, 200_000}, {100, size - 100}} {
		got, err := load(t, b, h, r[0], r[1])
		if err != nil {
			t.Errorf("Load(%d+%d): %v", r[0], r[1], err)
			continue
		}
		want := data[r[0]:]
		if r[1] > 0 {
			want = want[:r[1]]
		}
		if !bytes.Equal(got, want) {
			t.Errorf("Load(%d+%d) gives %d bytes that are not those of the file", r[0], r[1], len(got))
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, size + 1}, {size, 0}, {size, 1}, {size - 1, 2}, {size + 1, 0}, {size + 1, 1}, {1 << 62, 1 << 62}} {
		_, err := load(t, b, h, r[0], r[1])
		wantError(t, fmt.Sprintf("Load(%d+%d) of %d", r[0], r[1], size), err, backend.ErrPermanent)
	}
	err := b.Load(t.Context(), h, 0, 0, func(io.Reader) error { return nil })
	if err != nil {
		t.Errorf("Load whose callback reads nothing: %v", err)
	}
}

func reportsMissing(t *testing.T, b backend.Backend) {
	handles := []backend.Handle{{Type: restic.ConfigFile}}
	for _, ft := range types {
		handles = append(handles, HandleOf(ft, Bytes(20)))
	}
	for _, h := range handles {
		_, err := b.Stat(t.Context(), h)
		wantError(t, "Stat "+h.String(), err, backend.ErrNotExist)
		called := false
		err = b.Load(t.Context(), h, 0, 0, func(io.Reader) error { called = true; return nil })
		wantError(t, "Load "+h.String(), err, backend.ErrNotExist)
		if called {
			t.Errorf("Load of the missing %s called back", h)
		}
		if err := b.Remove(t.Context(), h); err != nil && !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("Remove %s: %v", h, err)
		}
	}
}

func neverOverwrites(t *testing.T, b backend.Backend) {
	for _, ft := range types {
		data := Bytes(5000)
		h := save(t, b, ft, data)
		if err := b.Save(t.Context(), h, data); err != nil {
			t.Errorf("second Save(%s): %v", h, err)
		}
		// Same length, other bytes: no store can know, but none may replace the first ones.
		if err := b.Save(t.Context(), h, Bytes(len(data))); err != nil && !errors.Is(err, backend.ErrExist) {
			t.Errorf("Save(%s) of the same length: %v", h, err)
		}
		wantError(t, "Save of a shorter "+h.String(), b.Save(t.Context(), h, data[:10]), backend.ErrExist)
		if got := mustLoad(t, b, h); !bytes.Equal(got, data) {
			t.Errorf("%s was changed by saving it again", h)
		}
	}
}

func savesConfigOnce(t *testing.T, b backend.Backend) {
	data := Bytes(200)
	h := save(t, b, restic.ConfigFile, data)
	wantError(t, "second Save of config", b.Save(t.Context(), h, Bytes(200)), backend.ErrExist)
	if got := mustLoad(t, b, h); !bytes.Equal(got, data) {
		t.Error("config was changed by saving it again")
	}
}

func letsOneInitWin(t *testing.T, b backend.Backend) {
	h := backend.Handle{Type: restic.ConfigFile}
	var mu sync.Mutex
	var winner []byte
	won := 0
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			data := Bytes(100)
			switch err := b.Save(t.Context(), h, data); {
			case err == nil:
				mu.Lock()
				defer mu.Unlock()
				winner = data
				won++
			case !errors.Is(err, backend.ErrExist):
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil || won != 1 {
		t.Fatalf("%d of 8 saved config, %v", won, err)
	}
	if got := mustLoad(t, b, h); !bytes.Equal(got, winner) {
		t.Error("config is not the winner's")
	}
}

func listsFiles(t *testing.T, b backend.Backend) {
	save(t, b, restic.ConfigFile, Bytes(30))
	want := map[restic.FileType]map[string]int64{}
	for i, ft := range types {
		want[ft] = map[string]int64{}
		for j := range 3 + i {
			data := Bytes(100*i + j + 16)
			want[ft][save(t, b, ft, data).Name] = int64(len(data))
		}
	}
	for _, ft := range types {
		got := list(t, b, ft)
		if len(got) != len(want[ft]) {
			t.Errorf("List(%s) tells %d files, want %d", ft, len(got), len(want[ft]))
		}
		for name, size := range want[ft] {
			if got[name] != size {
				t.Errorf("List(%s): size %d of %s, want %d", ft, got[name], name, size)
			}
		}
	}
}

func returnsCallbackError(t *testing.T, b backend.Backend) {
	mine := errors.New("mine")
	h := save(t, b, restic.PackFile, Bytes(100_000))
	save(t, b, restic.PackFile, Bytes(100))
	wantError(t, "Load", b.Load(t.Context(), h, 0, 0, func(io.Reader) error { return mine }), mine)
	wantError(t, "Load after a read", b.Load(t.Context(), h, 0, 0, func(r io.Reader) error {
		if _, err := io.CopyN(io.Discard, r, 10); err != nil {
			return err
		}
		return mine
	}), mine)
	calls := 0
	err := b.List(t.Context(), restic.PackFile, func(backend.FileInfo) error { calls++; return mine })
	wantError(t, "List", err, mine)
	if calls != 1 {
		t.Errorf("List called back %d times after an error", calls)
	}
}

func removesFiles(t *testing.T, b backend.Backend) {
	for _, ft := range types {
		data, kept := Bytes(64), Bytes(64)
		h, other := save(t, b, ft, data), save(t, b, ft, kept)
		if err := b.Remove(t.Context(), h); err != nil {
			t.Errorf("Remove(%s): %v", h, err)
		}
		_, err := b.Stat(t.Context(), h)
		wantError(t, "Stat of the removed "+h.String(), err, backend.ErrNotExist)
		if got := list(t, b, ft); len(got) != 1 || got[other.Name] != 64 {
			t.Errorf("List(%s) after Remove: %v", ft, got)
		}
		if h2 := save(t, b, ft, data); !bytes.Equal(mustLoad(t, b, h2), data) {
			t.Errorf("%s was not saved again after Remove", h)
		}
	}
}

func refusesHandles(t *testing.T, b backend.Backend) {
	hex := strings.Repeat("a", 64)
	for _, h := range []backend.Handle{
		{Type: restic.PackFile}, {Type: restic.PackFile, Name: "../config"}, {Type: restic.KeyFile, Name: hex[:63]},
		{Type: restic.KeyFile, Name: strings.ToUpper(hex)}, {Type: restic.ConfigFile, Name: hex}, {Type: "", Name: hex},
		{Type: "../data", Name: hex}, {Type: restic.LockFile, Name: "../../" + hex[6:]},
	} {
		wantError(t, "Save "+h.String(), b.Save(t.Context(), h, []byte("x")), backend.ErrPermanent)
		wantError(t, "Remove "+h.String(), b.Remove(t.Context(), h), backend.ErrPermanent)
		_, err := b.Stat(t.Context(), h)
		wantError(t, "Stat "+h.String(), err, backend.ErrPermanent)
		_, err = load(t, b, h, 0, 0)
		wantError(t, "Load "+h.String(), err, backend.ErrPermanent)
	}
}

func returnsWhenCancelled(t *testing.T, b backend.Backend) {
	data := Bytes(2 << 20)
	h := save(t, b, restic.PackFile, data)
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	check := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, reason) && !errors.Is(err, context.Canceled) {
			t.Errorf("%s after the context's end: %v", what, err)
		}
	}
	more := Bytes(1000)
	check("Save", b.Save(ctx, HandleOf(restic.PackFile, more), more))
	_, err := b.Stat(ctx, h)
	check("Stat", err)
	check("Load", b.Load(ctx, h, 0, 0, func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }))
	check("List", b.List(ctx, restic.PackFile, func(backend.FileInfo) error { return nil }))
	check("Remove", b.Remove(ctx, h))
	if got := mustLoad(t, b, h); !bytes.Equal(got, data) {
		t.Error("a cancelled Remove had an effect")
	}

	ctx, cancel = context.WithCancelCause(t.Context())
	defer cancel(nil)
	check("Load under way", b.Load(ctx, h, 0, 0, func(r io.Reader) error {
		if _, err := io.CopyN(io.Discard, r, 1000); err != nil {
			return err
		}
		cancel(reason)
		_, err := io.Copy(io.Discard, r)
		return err
	}))
}

func bearsConcurrency(t *testing.T, b backend.Backend) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	shared := Bytes(200_000)
	var g errgroup.Group
	names := make([]string, 8)
	for i := range names {
		g.Go(func() error {
			own := Bytes(100_000 + i)
			names[i] = HandleOf(restic.PackFile, own).Name
			for _, data := range [][]byte{own, shared} {
				h := HandleOf(restic.PackFile, data)
				if err := b.Save(ctx, h, data); err != nil {
					return err
				}
				err := b.Load(ctx, h, 500, 1000, func(r io.Reader) error {
					got, err := io.ReadAll(r)
					if err == nil && !bytes.Equal(got, data[500:1500]) {
						err = fmt.Errorf("wrong bytes of %s", h)
					}
					return err
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	got := list(t, b, restic.PackFile)
	names = append(names, HandleOf(restic.PackFile, shared).Name)
	slices.Sort(names)
	for _, name := range names {
		if _, ok := got[name]; !ok {
			t.Errorf("%s was saved, but is not listed", name)
		}
	}
	if len(got) != len(names) {
		t.Errorf("%d files listed, %d saved", len(got), len(names))
	}
	h := HandleOf(restic.PackFile, shared)
	if data := mustLoad(t, b, h); !bytes.Equal(data, shared) {
		t.Error("a file saved by many at once is damaged")
	}
}

// RunAppendOnly holds a store that refuses to delete to the rest of the guarantees. Locks may be removable.
func RunAppendOnly(t *testing.T, open func(t *testing.T) backend.Backend) {
	b := open(t)
	defer func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	for _, ft := range []restic.FileType{restic.KeyFile, restic.SnapshotFile, restic.IndexFile, restic.PackFile} {
		data := Bytes(3000)
		h := save(t, b, ft, data)
		wantError(t, "Remove "+h.String(), b.Remove(t.Context(), h), backend.ErrReadOnly)
		wantError(t, "Save of a shorter "+h.String(), b.Save(t.Context(), h, data[:10]), backend.ErrExist)
		if err := b.Save(t.Context(), h, data); err != nil {
			t.Errorf("second Save(%s): %v", h, err)
		}
		if got := mustLoad(t, b, h); !bytes.Equal(got, data) {
			t.Errorf("%s is not what was saved", h)
		}
		if got := list(t, b, ft); got[h.Name] != int64(len(data)) {
			t.Errorf("List(%s) after a refused Remove: %v", ft, got)
		}
	}
	lock := save(t, b, restic.LockFile, Bytes(100))
	if err := b.Remove(t.Context(), lock); err != nil {
		t.Errorf("Remove(%s): %v; locks have to go even here", lock, err)
	}
}
