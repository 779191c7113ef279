package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmkeep/vmkeep/plugin"
)

func (a *app) filesDiff() *cobra.Command {
	cmd := &cobra.Command{Use: "diff POINT1 POINT2 [PATH]", Short: "Show what differs between two points", Args: takes(2, 3),
		Long: `Show which files were added, removed or changed from one point to another, below a directory.

  + PATH           only in POINT2
  - PATH           only in POINT1
  M PATH  (why)    in both: type, size, time, mode, owner, link, streams or content differ

Without --content only metadata is compared. With it all files below the directory are read in both points, which finds
what changed while size and time stayed.`,
		Example: "  vmkeep files diff 4f1c22aa latest -m web1 /etc\n  vmkeep files diff 4f1c22aa 9e0b1177 /var/lib/app --content --json"}
	r := fileFlags(cmd)
	content := cmd.Flags().Bool("content", false, "compare the content of all files, too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.Path, r.Recursive = "/", true
		if len(args) > 2 {
			r.Path = args[2]
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			var sides [2]tree
			for i := range sides {
				r.Point = args[i]
				var err error
				if sides[i], err = readTree(ctx, s, *r, *content); err != nil {
					return err
				}
			}
			return a.tellDifferences(compareTrees(sides[0], sides[1]))
		})
	}
	return cmd
}

// tree is what a point has below a directory, by path.
type tree struct {
	files map[string]plugin.File
	sums  map[string][sha256.Size]byte // of content, also "FILE:STREAM"; nil: not read
}

// guestReader is the part of [plugin.Service] that comparing needs.
type guestReader interface {
	ListFiles(ctx context.Context, r plugin.FileRequest, fn func(plugin.File) error) error
	ReadFile(ctx context.Context, r plugin.FileRequest, fn func(plugin.Frame) error) error
	TarFiles(ctx context.Context, r plugin.FileRequest, fn func([]byte) error) error
}

func readTree(ctx context.Context, s guestReader, r plugin.FileRequest, content bool) (tree, error) {
	t := tree{files: map[string]plugin.File{}}
	if err := s.ListFiles(ctx, r, func(f plugin.File) error { t.files[f.Path] = f; return nil }); err != nil || !content {
		return t, err
	}
	// One archive instead of a call for each file: every call opens the repository anew.
	t.sums = map[string][sha256.Size]byte{}
	dir := archiveBase(r.Path)
	err := readArchive(ctx, s, r, func(h *tar.Header, content io.Reader) error {
		name := guestName(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			sum := sha256.New()
			if _, err := io.Copy(sum, content); err != nil {
				return err
			}
			t.sums[name] = [sha256.Size]byte(sum.Sum(nil))
		case tar.TypeLink:
			t.sums[name] = t.sums[guestName(dir, h.Linkname)]
		}
		return nil
	})
	if err != nil {
		return t, err
	}
	for name, f := range t.files {
		if _, ok := t.sums[name]; ok || f.Type != "file" {
			continue
		}
		if _, ok := t.sums[name+".unreadable"]; ok {
			continue // neither side is known then
		}
		one := r // a path through a symbolic link is listed by another name
		one.Path = name
		sum := sha256.New()
		if err := s.ReadFile(ctx, one, newHoles(sum).frame); err != nil {
			return t, err
		}
		t.sums[name] = [sha256.Size]byte(sum.Sum(nil))
	}
	return t, nil
}

// archiveBase is the guest directory that names in an archive of a path are relative to: the one that the path is in,
// or, where it is a drive of Windows, the drive.
func archiveBase(name string) string {
	name = strings.ReplaceAll(name, `\`, "/")
	p := strings.TrimLeft(name, "/")
	if !isWindows(p) {
		return path.Dir(path.Clean("/" + name))
	}
	if p = path.Clean(strings.ToUpper(p[:1]) + p[1:]); len(p) == len("C:") {
		return p
	}
	return path.Dir(p)
}

// guestName is the path in the guest of a name in an archive. An archive of all drives names them.
func guestName(dir, name string) string {
	if dir == "/" && isWindows(name) {
		return path.Clean(name)
	}
	return path.Join(dir, name)
}

// isWindows reports whether a path begins with a drive letter.
func isWindows(name string) bool {
	return len(name) >= 2 && name[1] == ':' && (name[0]|0x20) >= 'a' && (name[0]|0x20) <= 'z' && (len(name) == 2 || name[2] == '/')
}

// readArchive calls fn for every entry of an archive of guest files while it arrives.
func readArchive(ctx context.Context, s guestReader, r plugin.FileRequest, fn func(*tar.Header, io.Reader) error) error {
	in, feed := io.Pipe()
	fed := make(chan error, 1)
	go func() {
		err := s.TarFiles(ctx, r, func(data []byte) error {
			_, err := feed.Write(data)
			return err
		})
		feed.CloseWithError(err) // nil: the end
		fed <- err
	}()
	err := func() error {
		archive := tar.NewReader(in)
		for {
			h, err := archive.Next()
			if errors.Is(err, io.EOF) {
				_, err := io.Copy(io.Discard, in) // what pads the archive
				return err
			}
			if err != nil {
				return &plugin.Error{Code: plugin.CodeFile, Summary: "the archive of files broke off", Detail: err.Error(), Remedy: "try again", Err: err}
			}
			if err := fn(h, archive); err != nil {
				return err
			}
		}
	}()
	in.CloseWithError(errStopped)
	if e := <-fed; e != nil && !errors.Is(e, errStopped) {
		return e // the cause, of which the archive only broke off
	}
	return err
}

// difference is one line in JSON.
type difference struct {
	Path   string
	Change string   // added, removed, changed
	What   []string // type, size, time, mode, owner, link, streams, content
	Before *plugin.File
	After  *plugin.File
}

// differences is the last line in JSON.
type differences struct{ Added, Removed, Changed, Same int }

func compareTrees(before, after tree) ([]difference, differences) {
	names := maps.Clone(before.files)
	maps.Copy(names, after.files)
	var out []difference
	var sum differences
	for _, name := range slices.Sorted(maps.Keys(names)) {
		old, was := before.files[name]
		now, is := after.files[name]
		d := difference{Path: name, Before: &old, After: &now}
		switch {
		case !was:
			d.Change, d.Before = "added", nil
			sum.Added++
		case !is:
			d.Change, d.After = "removed", nil
			sum.Removed++
		default:
			if d.What = changes(old, now, before.sums, after.sums); len(d.What) == 0 {
				sum.Same++
				continue
			}
			d.Change = "changed"
			sum.Changed++
		}
		out = append(out, d)
	}
	return out, sum
}

// changes says in what two versions of a file differ.
func changes(old, now plugin.File, before, after map[string][sha256.Size]byte) []string {
	var what []string
	note := func(differs bool, word string) {
		if differs {
			what = append(what, word)
		}
	}
	note(old.Type != now.Type, "type")
	note(old.Type == "file" && now.Type == "file" && old.Size != now.Size, "size")
	note(!old.ModTime.Equal(now.ModTime), "time")
	note(old.Mode != now.Mode, "mode")
	note(old.UID != now.UID || old.GID != now.GID, "owner")
	note(old.Link != now.Link, "link")
	note(!sameNames(old.Streams, now.Streams), "streams")
	differs := before[old.Path] != after[now.Path]
	for _, s := range now.Streams {
		name := now.Path + ":" + s
		differs = differs || slices.Contains(old.Streams, s) && before[name] != after[name]
	}
	note(differs, "content")
	return what
}

func sameNames(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func (a *app) tellDifferences(all []difference, sum differences) error {
	for _, d := range all {
		if a.json {
			writeJSON(a.stdout, "difference", d)
			continue
		}
		line := map[string]string{"added": "+ ", "removed": "- ", "changed": "M "}[d.Change] + printable(d.Path)
		if len(d.What) > 0 {
			line += "  (" + strings.Join(d.What, ", ") + ")"
		}
		if _, err := fmt.Fprintln(a.stdout, line); err != nil {
			return outputError(err)
		}
	}
	if a.json {
		writeJSON(a.stdout, "summary", sum)
		return nil
	}
	_, err := fmt.Fprintf(a.stdout, "%d added, %d removed, %d changed, %d the same\n", sum.Added, sum.Removed, sum.Changed, sum.Same)
	return outputError(err)
}
