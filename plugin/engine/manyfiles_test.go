package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// A disk in more files than may be open is written and read like any other.
func TestDiskInManyFilesKeepsFewOpen(t *testing.T) {
	const unit, count = 4096, 3 * openFiles
	d := &fileDisk{size: unit*count - 512, unit: unit}
	dir := t.TempDir()
	for n := range count {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(n)))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.add(f, min(unit, d.size-int64(n)*unit)); err != nil {
			t.Fatal(err)
		}
	}
	open := 0
	for n := range count {
		if file := d.names[n]; n < len(d.files) && d.files[n].Name() == file {
			open++
		} else if st, err := os.Stat(file); err != nil || st.Size() != min(unit, d.size-int64(n)*unit) {
			t.Fatalf("file %d: %v %v", n, st, err)
		}
	}
	if open != openFiles {
		t.Errorf("%d files are open, want %d", open, openFiles)
	}

	want := make([]byte, d.size)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		off := rng.IntN(len(want))
		p := want[off:min(len(want), off+rng.IntN(3*unit))]
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		if n, err := d.WriteAt(p, int64(off)); err != nil || n != len(p) {
			t.Fatal(n, err)
		}
	}
	got := make([]byte, len(want))
	if n, err := d.ReadAt(got, 0); err != nil || n != len(got) || !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes, %v, equal: %t", n, err, bytes.Equal(got, want))
	}
	if err := d.sync(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(d.names[count-1]); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(got[:1], d.size-1); err == nil {
		t.Error("a file that is gone was written")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for _, f := range d.files {
		if err := f.Close(); err == nil {
			t.Fatal("a file was still open")
		}
	}
}
