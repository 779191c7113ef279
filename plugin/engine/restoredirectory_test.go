package engine

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Every directory that gets an entry is made durable: those that are made, the one they are made in, and the one above.
func TestDirectoriesThatGetEntriesAreKnown(t *testing.T) {
	top := filepath.Join(t.TempDir(), "there", "too")
	if err := os.MkdirAll(top, 0o700); err != nil {
		t.Fatal(err)
	}
	d := directories{}
	for _, name := range []string{filepath.Join(top, "to", "web"), filepath.Join(top, "to", "web", "scsi0-0", "0000"), filepath.Join(top, "to", "web", "scsi0-0", "0001")} {
		if err := d.add(name); err != nil {
			t.Fatal(err)
		}
		if !exists(name) {
			t.Errorf("%s was not made", name)
		}
	}
	if err := d.sync(); err != nil {
		t.Error(err)
	}
	want := []string{filepath.Dir(top), top}
	for _, name := range []string{"to", "to/web", "to/web/scsi0-0", "to/web/scsi0-0/0000", "to/web/scsi0-0/0001"} {
		want = append(want, filepath.Join(top, name))
	}
	if got := slices.Sorted(maps.Keys(d)); !slices.Equal(got, want) {
		t.Errorf("to be made durable: %q, want %q", got, want)
	}
	file := filepath.Join(top, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.add(filepath.Join(file, "below")); err == nil {
		t.Error("a directory below a file was made")
	}
}
