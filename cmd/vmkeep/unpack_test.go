package main

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
)

// TestUnpackStaysInside: whatever a guest calls its files and wherever its links lead, nothing outside of the
// directory is touched.
func TestUnpackStaysInside(t *testing.T) {
	base := t.TempDir()
	inside := filepath.Join(base, "inside")
	secret := filepath.Join(base, "secret")
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(secret, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(h tar.Header, content string) {
		t.Helper()
		h.Size, h.Format = int64(len(content)), tar.FormatPAX
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.ModTime = time.Unix(1e9, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Name: "/etc/hosts", Typeflag: tar.TypeReg}, "hosts")
	add(tar.Header{Name: "../secret", Typeflag: tar.TypeReg}, "evil")
	add(tar.Header{Name: "up", Typeflag: tar.TypeSymlink, Linkname: ".."}, "")
	add(tar.Header{Name: "up/secret", Typeflag: tar.TypeReg}, "evil")
	add(tar.Header{Name: "absolute", Typeflag: tar.TypeSymlink, Linkname: secret}, "")
	add(tar.Header{Name: "absolute", Typeflag: tar.TypeReg}, "evil")
	add(tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "up/secret"}, "")
	add(tar.Header{Name: "twin", Typeflag: tar.TypeLink, Linkname: "etc/hosts"}, "")
	add(tar.Header{Name: "dev", Typeflag: tar.TypeBlock}, "")
	add(tar.Header{Name: "dir", Typeflag: tar.TypeDir, Mode: 0o750}, "")
	add(tar.Header{Name: "dir/file", Typeflag: tar.TypeReg, Mode: 0o640}, "content")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	for _, overwrite := range []bool{false, true} {
		root, err := os.OpenRoot(inside)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		u := unpacker{root: root, overwrite: overwrite}
		if err := readArchive(t.Context(), archiveOf(archive.Bytes()), plugin.FileRequest{}, u.add); err != nil {
			t.Fatal(err)
		}
		u.finish()
		if got, err := os.ReadFile(secret); err != nil || string(got) != "untouched" {
			t.Fatalf("overwrite %v: the file outside is %q, %v", overwrite, got, err)
		}
		if entries, err := os.ReadDir(base); err != nil || len(entries) != 2 {
			t.Errorf("overwrite %v: outside there is %v, %v", overwrite, entries, err)
		}
		var reasons []string
		for _, s := range u.done.Skipped {
			reasons = append(reasons, s.Path)
		}
		if got := strings.Join(reasons, " "); !strings.Contains(got, "up/secret") || !strings.Contains(got, "hard") || !strings.Contains(got, "dev") {
			t.Errorf("overwrite %v: skipped %v", overwrite, u.done.Skipped)
		}
	}
	for path, want := range map[string]string{"etc/hosts": "hosts", "secret": "evil", "twin": "hosts", "dir/file": "content"} {
		got, err := os.ReadFile(filepath.Join(inside, path))
		if err != nil || string(got) != want {
			t.Errorf("%s is %q, %v", path, got, err)
		}
	}
	info, err := os.Stat(filepath.Join(inside, "dir"))
	if err != nil || info.Mode() != fs.ModeDir|0o750 || !info.ModTime().Equal(time.Unix(1e9, 0)) {
		t.Errorf("dir is %v of %v, %v", info.Mode(), info.ModTime(), err)
	}
}

// TestHoles: zeros become holes in a fresh file, and bytes everywhere else.
func TestHoles(t *testing.T) {
	frames := []plugin.Frame{{Length: 10 << 20}, {Offset: 10 << 20, Length: 3, Data: []byte("abc")}, {Offset: 10<<20 + 3, Length: 5 << 20}}
	want := append(append(make([]byte, 10<<20), "abc"...), make([]byte, 5<<20)...)
	write := func(h *holes) {
		t.Helper()
		for _, f := range frames {
			if err := h.frame(f); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.close(); err != nil {
			t.Fatal(err)
		}
	}
	var stream bytes.Buffer
	write(newHoles(&stream))
	if !bytes.Equal(stream.Bytes(), want) {
		t.Errorf("the stream has %d bytes", stream.Len())
	}
	for name, flags := range map[string]int{"fresh": os.O_CREATE | os.O_WRONLY, "appended to": os.O_CREATE | os.O_WRONLY | os.O_APPEND} {
		path := filepath.Join(t.TempDir(), "out")
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		h := newHoles(f)
		if sparse := h.file != nil; sparse != (name == "fresh") {
			t.Errorf("%s: makes holes: %v", name, sparse)
		}
		write(h)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the file has %d bytes, %v", name, len(got), err)
		}
	}
	// Over old content, skipping would keep it.
	path := filepath.Join(t.TempDir(), "old")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 20<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	write(newHoles(f))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got[:len(want)], want) {
		t.Errorf("old content shows through: %v", err)
	}
}
