package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
)

// guestFiles is a guest to read from: what its calls give.
type guestFiles struct {
	list    []plugin.File
	archive []byte
	fail    error // after the archive's bytes
	read    map[string]string
}

func archiveOf(b []byte) guestFiles { return guestFiles{archive: b} }

func (g guestFiles) ListFiles(_ context.Context, _ plugin.FileRequest, fn func(plugin.File) error) error {
	for _, f := range g.list {
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

func (g guestFiles) ReadFile(_ context.Context, r plugin.FileRequest, fn func(plugin.Frame) error) error {
	content, ok := g.read[r.Path]
	if !ok {
		return fs.ErrNotExist
	}
	return fn(plugin.Frame{Length: int64(len(content)), Data: []byte(content)})
}

func (g guestFiles) TarFiles(_ context.Context, _ plugin.FileRequest, fn func([]byte) error) error {
	for b := range slices.Chunk(g.archive, 1000) {
		if err := fn(b); err != nil {
			return err
		}
	}
	return g.fail
}

type member struct {
	tar.Header
	content string
}

func archive(t *testing.T, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		m.Format, m.Size, m.ModTime = tar.FormatPAX, int64(len(m.content)), time.Unix(1e9, 0)
		if m.Mode == 0 {
			m.Mode = 0o644
		}
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestUnpackKeepsWhatTheTargetHolds: streams become files, holes stay holes, attributes are set, and what cannot be
// is told.
func TestUnpackKeepsWhatTheTargetHolds(t *testing.T) {
	long := strings.Repeat("ü", 200) // a name of NTFS that is too long for Linux
	sparse := string(make([]byte, 8<<20)) + "end" + string(make([]byte, 1<<20))
	b := archive(t,
		member{tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755}, ""},
		member{tar.Header{Name: "dir:note", Typeflag: tar.TypeReg, PAXRecords: map[string]string{plugin.TarStream: "note"}}, "of a directory"},
		member{tar.Header{Name: "dir/doc", Typeflag: tar.TypeReg, Mode: 0o600, PAXRecords: map[string]string{"SCHILY.xattr.user.color": "red", "SCHILY.xattr.system.ntfs_acl": "x"}}, "text"},
		member{tar.Header{Name: "dir/doc:Zone.Identifier", Typeflag: tar.TypeReg, PAXRecords: map[string]string{plugin.TarStream: "Zone.Identifier"}}, "[ZoneTransfer]"},
		member{tar.Header{Name: "dir/sparse", Typeflag: tar.TypeReg}, sparse},
		member{tar.Header{Name: "dir/" + long, Typeflag: tar.TypeReg}, "lost"},
		member{tar.Header{Name: "dir/secret.unreadable", Typeflag: tar.TypeReg, PAXRecords: map[string]string{plugin.TarUnreadable: "encrypted"}}, "encrypted\n"},
	)
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	u := unpacker{root: root}
	if err := readArchive(t.Context(), archiveOf(b), plugin.FileRequest{}, u.add); err != nil {
		t.Fatal(err)
	}
	u.finish()
	for name, want := range map[string]string{"dir:note": "of a directory", "dir/doc": "text", "dir/doc:Zone.Identifier": "[ZoneTransfer]", "dir/sparse": sparse} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if len(u.done.Skipped) != 2 || !strings.Contains(u.done.Skipped[0].Path, long) || u.done.Skipped[1] != (skipped{"dir/secret", "encrypted"}) {
		t.Errorf("skipped %+v", u.done.Skipped)
	}
	keptByLinux(t, filepath.Join(dir, "dir/sparse"), filepath.Join(dir, "dir/doc"))
}

func TestZipHoldsWhatTarSays(t *testing.T) {
	b := archive(t,
		member{tar.Header{Name: "app/", Typeflag: tar.TypeDir, Mode: 0o750}, ""},
		member{tar.Header{Name: "app/run", Typeflag: tar.TypeReg, Mode: 0o4755}, strings.Repeat("run ", 5000)},
		member{tar.Header{Name: "app/link", Typeflag: tar.TypeSymlink, Linkname: "../etc/x", Mode: 0o777}, ""},
		member{tar.Header{Name: "app/sub/twin", Typeflag: tar.TypeLink, Linkname: "app/run"}, ""},
		member{tar.Header{Name: "app/pipe", Typeflag: tar.TypeFifo}, ""},
		member{tar.Header{Name: "../../out", Typeflag: tar.TypeReg}, "inside"},
	)
	var out, notes bytes.Buffer
	a := &app{stdout: &out, stderr: &notes}
	if err := a.zipFiles(t.Context(), archiveOf(b), plugin.FileRequest{}); err != nil {
		t.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		name    string
		mode    fs.FileMode
		content string
	}{
		{"app/", fs.ModeDir | 0o750, ""}, {"app/run", fs.ModeSetuid | 0o755, strings.Repeat("run ", 5000)}, {"app/link", fs.ModeSymlink | 0o777, "../etc/x"},
		{"app/sub/twin", fs.ModeSymlink | 0o777, "../run"}, {"out", 0o644, "inside"},
	}
	if len(z.File) != len(want) {
		t.Fatalf("%d files, want %d", len(z.File), len(want))
	}
	for i, w := range want {
		f := z.File[i]
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if f.Name != w.name || f.Mode() != w.mode || err != nil || string(content) != w.content || !f.Modified.Equal(time.Unix(1e9, 0)) {
			t.Errorf("%s: mode %v, %d bytes, modified %v, %v; want %s, %v", f.Name, f.Mode(), len(content), f.Modified, err, w.name, w.mode)
		}
	}
	if !strings.Contains(notes.String(), "1 file left out") {
		t.Errorf("notes: %q", notes.String())
	}

	// What breaks off is no archive, and says why.
	out.Reset()
	broken := errors.New("the repository is gone")
	if err := a.zipFiles(t.Context(), guestFiles{archive: b[:len(b)/2], fail: broken}, plugin.FileRequest{}); !errors.Is(err, broken) {
		t.Errorf("an archive that broke off: %v", err)
	}
	if _, err := zip.NewReader(bytes.NewReader(out.Bytes()), int64(out.Len())); err == nil {
		t.Error("an archive that broke off opens")
	}
}

func TestDifferencesOfTwoPoints(t *testing.T) {
	at := time.Unix(1e9, 0)
	file := func(name string, size int64) plugin.File {
		return plugin.File{Path: name, Type: "file", Size: size, Mode: 0o644, ModTime: at}
	}
	touched, moded, linked, streamed := file("/d/touched", 1), file("/d/moded", 1), plugin.File{Path: "/d/linked", Type: "symlink", Link: "b", ModTime: at}, file("/d/streamed", 1)
	touched.ModTime, moded.Mode, streamed.Streams = at.Add(1), 0o600, []string{"s"}
	before := guestFiles{list: []plugin.File{file("/d/same", 4), file("/d/gone", 1), file("/d/grown", 1), file("/d/silent", 4), file("/d/touched", 1), file("/d/moded", 1), {Path: "/d/linked", Type: "symlink", Link: "a", ModTime: at}, file("/d/streamed", 1)}}
	after := guestFiles{list: []plugin.File{file("/d/same", 4), file("/d/new", 1), file("/d/grown", 2), file("/d/silent", 4), touched, moded, linked, streamed}}
	content := func(silent string) []byte {
		reg := func(name, content string) member {
			return member{tar.Header{Name: name, Typeflag: tar.TypeReg}, content}
		}
		return archive(t, reg("d/same", "same"), reg("d/silent", silent), reg("d/grown", "g"), reg("d/touched", "t"), reg("d/moded", "m"), reg("d/streamed", "s"), reg("d/new", "n"))
	}
	before.archive, after.archive = content("abcd"), content("abce")
	before.read = map[string]string{"/d/gone": "x"} // listed, but called otherwise in the archive
	for _, deep := range []bool{false, true} {
		var sides [2]tree
		for i, g := range []guestFiles{before, after} {
			var err error
			if sides[i], err = readTree(t.Context(), g, plugin.FileRequest{Path: "/d"}, deep); err != nil {
				t.Fatal(err)
			}
		}
		want := "- /d/gone\nM /d/grown  (size)\nM /d/linked  (link)\nM /d/moded  (mode)\n+ /d/new\n"
		last := "M /d/streamed  (streams)\nM /d/touched  (time)\n1 added, 1 removed, 5 changed, 2 the same\n"
		if deep {
			last = strings.Replace("M /d/silent  (content)\n"+last, "5 changed, 2", "6 changed, 1", 1)
		}
		var out bytes.Buffer
		if err := (&app{stdout: &out}).tellDifferences(compareTrees(sides[0], sides[1])); err != nil {
			t.Fatal(err)
		}
		if out.String() != want+last {
			t.Errorf("content %v:\n%swant\n%s", deep, out.String(), want+last)
		}
		out.Reset()
		if err := (&app{stdout: &out, json: true}).tellDifferences(compareTrees(sides[0], sides[1])); err != nil {
			t.Fatal(err)
		}
		if lines := strings.Split(out.String(), "\n"); !strings.Contains(lines[0], `"message_type":"difference","path":"/d/gone","change":"removed","what":[],"before":{`) || strings.Contains(lines[0], `"after"`) {
			t.Errorf("JSON: %s", lines[0])
		}
	}
}
