package repo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// In a repository of either version, whose trees and files lie in packs of their own and on which somebody holds a lock, each byte
// of each file is flipped. Whoever opens, checks or reads it notices what concerns him, and never gets a wrong byte.
func TestEveryFlippedByteIsNoticed(t *testing.T) {
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { flipEveryByte(t, version) })
		})
	}
}

func flipEveryByte(t *testing.T, version int) {
	be := backendtest.NewMemory()
	r, err := Init(t.Context(), be, InitOptions{Password: password, KeyTime: time.Nanosecond, Version: version})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.packSize = 1 // every blob gets a pack
	files := map[string][]byte{"a": []byte("some content"), "b": noise(1, 100)}
	s, err := commitFiles(t.Context(), r, "vm", files)
	if err != nil {
		t.Fatal(err)
	}
	leaveLock(t, r, restic.Lock{Time: time.Now(), Hostname: "elsewhere", Username: "u", PID: 1})
	bytesOf, filesOf := make(map[restic.FileType]int), make(map[restic.FileType]int)
	for _, h := range be.Handles() {
		good := be.Bytes(h)
		filesOf[h.Type]++
		bytesOf[h.Type] += len(good)
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= byte(1 + i%255)
			broken := be.Clone()
			broken.Replace(h, bad)
			if err := noticed(t, r, broken, h); err != nil {
				t.Fatalf("%s, byte %d: %v", h, i, err)
			}
			got, err := readFiles(t.Context(), blind(r, broken), s)
			for name := range got {
				if !bytes.Equal(got[name], files[name]) {
					t.Fatalf("%s, byte %d: a wrong byte was delivered", h, i)
				}
			}
			if h.Type == restic.PackFile && err == nil && i < headerOf(good) {
				t.Fatalf("%s, byte %d: all was read", h, i)
			}
			if h.Type == restic.LockFile && err != nil {
				t.Fatalf("%s, byte %d: a lock keeps from reading: %v", h, i, err)
			}
		}
	}
	for _, kind := range []restic.FileType{restic.ConfigFile, restic.KeyFile, restic.SnapshotFile, restic.IndexFile, restic.PackFile, restic.LockFile} {
		if bytesOf[kind] < 50 {
			t.Errorf("%d bytes of %s were flipped", bytesOf[kind], kind)
		}
	}
	if filesOf[restic.PackFile] != 4 || filesOf[restic.LockFile] != 1 {
		t.Errorf("%d packs and %d locks, not one for each of two files and two trees, and one", filesOf[restic.PackFile], filesOf[restic.LockFile])
	}
}

// A whole pack at the place of another of the same length is intact in itself, down to its MACs, and still noticed; so are a pack
// with a byte too many or too few, and one whose blobs changed places.
func TestEveryWrongPackIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		r, err := Init(t.Context(), be, InitOptions{Password: password, KeyTime: time.Nanosecond})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		files := make(map[string][]byte)
		for i := range 8 {
			files[fmt.Sprint(i)] = noise(uint64(i), 100)
		}
		if _, err := commitFiles(t.Context(), r, "many blobs in a pack", files); err != nil {
			t.Fatal(err)
		}
		r.packSize = 1
		for _, name := range []string{"x", "y"} {
			if _, err := commitFiles(t.Context(), r, name, map[string][]byte{"f": noise(uint64(name[0]), 100)}); err != nil {
				t.Fatal(err)
			}
		}
		wrong := 0
		try := func(h backend.Handle, content []byte) {
			wrong++
			broken := be.Clone()
			broken.Replace(h, content)
			if err := noticed(t, r, broken, h); err != nil {
				t.Errorf("%s: %v", h, err)
			}
		}
		ofLength := make(map[int][]backend.Handle)
		for _, h := range be.Handles() {
			if h.Type != restic.PackFile {
				continue
			}
			pack := be.Bytes(h)
			try(h, append(bytes.Clone(pack), 0))
			try(h, pack[:len(pack)-1])
			if size := 100 + restic.Sealed; headerOf(pack) >= 2*size && headerOf(pack)%size == 0 {
				try(h, slices.Concat(pack[size:2*size], pack[:size], pack[2*size:]))
			}
			ofLength[len(pack)] = append(ofLength[len(pack)], h)
		}
		for _, same := range ofLength {
			for i, h := range same[1:] {
				try(h, be.Bytes(same[i]))
				try(same[i], be.Bytes(h))
			}
		}
		if packs := len(be.Handles()); wrong < packs {
			t.Errorf("only %d wrong packs were tried", wrong)
		}
	})
}

// headerOf is where in a pack its header begins; the pack's last four bytes tell the header's length.
func headerOf(pack []byte) int {
	end := len(pack) - 4
	return end - int(binary.LittleEndian.Uint32(pack[end:]))
}

// blind is r on another store, opened without a look at its key and config.
func blind(r *Repository, be backend.Backend) *Repository {
	fresh := &Repository{be: &gate{Backend: be}, config: r.config, key: r.key, zstd: r.zstd, zeros: r.zeros, blobs: newBlobCache(1e6), room: r.room}
	fresh.keyID.Store(r.keyID.Load())
	return fresh
}

// noticed fails unless opening or checking the store tells that h is damaged. Check goes to the end whatever it finds, but for a lock
// that it cannot read.
func noticed(t *testing.T, r *Repository, broken backend.Backend, h backend.Handle) error {
	fresh, opened := blind(r, broken), true
	if h.Type == restic.ConfigFile || h.Type == restic.KeyFile { // all that opening reads
		other, err := Open(t.Context(), broken, OpenOptions{Password: password})
		if opened = err == nil; opened {
			defer other.Close()
			fresh = other
		}
	}
	ctx := Unlocked(t.Context(), fresh)
	if h.Type == restic.LockFile {
		ctx = t.Context() // only who takes a lock looks at those of others
	}
	report, err := fresh.Check(ctx, CheckOptions{ReadData: ReadData{All: true}})
	var locked *LockedError
	switch {
	case h.Type == restic.LockFile:
		if !errors.As(err, &locked) || !errors.Is(err, ErrDamaged) {
			return fmt.Errorf("check: %w; want an unreadable lock", err)
		}
	case err == nil && report.OK():
		return fmt.Errorf("check finds nothing; it could be opened: %v", opened)
	case opened && err != nil:
		return fmt.Errorf("check: %w", err)
	}
	return nil
}
