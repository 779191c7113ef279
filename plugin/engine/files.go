package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// guest is the file systems inside a point.
type guest struct {
	machine *mount.Machine
}

// withGuest opens the disks of a point together and finds their volumes.
func (e *Engine) withGuest(ctx context.Context, req plugin.FileRequest, fn func(*guest) error) error {
	return e.operate(ctx, "files", nil, func(ctx context.Context, op *operation) error {
		return op.withRepository(ctx, func(r *repo.Repository) error {
			return r.WithLock(ctx, repo.Shared, func(ctx context.Context) error {
				point, err := findPoint(ctx, r, req.Point, req.Machine)
				if err != nil {
					return err
				}
				var disks []mount.Disk
				for _, d := range point.manifest.Disks {
					if d.Skipped != "" {
						continue
					}
					rd, err := point.openDisk(ctx, d)
					if err != nil {
						return err
					}
					disks = append(disks, mount.Disk{Name: d.Name, R: rd, Size: d.Capacity})
				}
				return guestFailure(fn(&guest{machine: mount.Open(disks)}))
			})
		})
	})
}

// guestFailure puts what a guest file system says into the contract's form.
func guestFailure(err error) error {
	for _, rule := range []struct {
		is      error
		summary string
		remedy  string
	}{
		{fs.ErrNotExist, "no such file in the guest", "list the directory with `vmkeep files ls`"},
		{guestfs.ErrEncrypted, "the guest encrypted this", "restore the machine and read it there"},
		{guestfs.ErrUnsupported, "this cannot be read here", "restore the disk, or export it, and mount it where its file system is known"},
		{guestfs.ErrUnknown, "no known file system", "restore or export the disk instead"},
		{guestfs.ErrDamaged, "the guest's file system is damaged", "take another point, or restore the disk and repair it with the guest's own tools"},
		{guestfs.ErrNotDir, "not a directory", "name a directory"},
		{guestfs.ErrNotRegular, "not a regular file", "only regular files have content"},
		{guestfs.ErrTooLarge, "more than is read here", "restore the disk instead"},
	} {
		var done *plugin.Error
		if errors.Is(err, rule.is) && !errors.As(err, &done) {
			return &plugin.Error{Code: plugin.CodeFile, Summary: rule.summary, Detail: err.Error(), Remedy: rule.remedy, Err: err}
		}
	}
	return err
}

// volume finds a volume by the name vmkeep gives it, its label, its uuid, a device name of the guest, or the place
// where the guest mounts it: "/home", "C:".
func (g *guest) volume(want string) (*mount.Volume, error) {
	var found []*mount.Volume
	if drive, rest := mount.Drive(want); strings.Trim(rest, `\/`) == "" && drive != "" {
		want = drive // C:\
	}
	for _, s := range g.machine.Systems() {
		for _, p := range s.Mounts {
			if p.Volume != nil && p.Dir == "" && strings.EqualFold(p.Path, want) {
				return p.Volume, nil
			}
		}
	}
	var names []string
	for _, v := range g.machine.Volumes() {
		names = append(names, v.Name)
		if v.Name == want || v.Label == want && want != "" || strings.EqualFold(v.UUID, want) && want != "" || slices.Contains(v.Paths, want) {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 0:
		return nil, &plugin.Error{Code: plugin.CodeFile, Summary: fmt.Sprintf("the point has no volume %q", want), Object: want, Remedy: "choose among " + strings.Join(names, ", ")}
	case 1:
		return found[0], nil
	}
	return nil, &plugin.Error{Code: plugin.CodeAmbiguous, Summary: fmt.Sprintf("%d volumes are called %q", len(found), want), Object: want, Remedy: "use the volume's name: " + strings.Join(names, ", ")}
}

// place is a file or directory of a guest.
type place struct {
	fs   *guestfs.FS
	id   guestfs.ID
	path string // within the volume, "/etc/fstab"; within the guest where system is known

	system *mount.System // whose mount points a walk crosses; nil: it stays on the volume
}

// inode is the file that a place leads to: equal for all names of one file.
type inode struct {
	fs *guestfs.FS
	id guestfs.ID
}

func (p place) inode() inode { return inode{p.fs, p.id} }

// child is an entry of a directory, or the root of what the guest mounts there and can be opened.
func (p place) child(entry guestfs.Entry) place {
	at := place{fs: p.fs, id: entry.ID, path: join(p.path, entry.Name), system: p.system}
	if p.system != nil {
		// Where the volume cannot be opened, the empty directory below is what can be shown.
		if root, ok := p.system.Cross(at.path, p.fs, entry); ok {
			at.fs, at.id = root.FS, root.ID
		}
	}
	return at
}

// drives are the roots of the drives of Windows, which lie below no directory.
func (p place) drives(ctx context.Context, req plugin.FileRequest, fn func(place, guestfs.Attr) error) error {
	for _, m := range p.system.Mounts {
		if m.Volume == nil {
			continue
		}
		root, err := p.system.Find(m.Path)
		if err != nil {
			continue // the list of volumes says why
		}
		at := place{fs: root.FS, id: root.ID, path: root.Path, system: p.system}
		a, err := at.fs.Stat(at.id)
		if err != nil {
			return fmt.Errorf("%s: %w", at.path, err)
		}
		if wanted(at.path, req.Globs) {
			if err := fn(at, a); err != nil {
				return err
			}
		}
		if !req.Recursive {
			continue
		}
		if err := at.below(ctx, req, fn, map[inode]bool{at.inode(): true}); err != nil {
			return err
		}
	}
	return nil
}

// find resolves a request to a place. Without a volume the path is one of the guest's own, across its mount points;
// where no operating system is found, one of the only volume that can be read. Above the drives of Windows the place
// has no file system: only walk accepts it.
func (g *guest) find(req plugin.FileRequest) (place, error) {
	if req.Volume == "" {
		if systems := g.machine.Systems(); len(systems) > 0 {
			s := systems[0]
			drive, _ := mount.Drive(strings.TrimLeft(req.Path, "/"))
			for _, other := range systems { // a machine that starts one of several
				if drive != "" && other.Windows() && !s.Windows() {
					s = other
				}
			}
			at, err := s.Find(req.Path)
			return place{fs: at.FS, id: at.ID, path: at.Path, system: &s}, err
		}
	}
	p := place{path: path.Clean("/" + req.Path)}
	v, err := g.choose(req.Volume, p.path)
	if err != nil {
		return p, err
	}
	if p.fs, err = v.Open(); err != nil {
		return p, err
	}
	if p.fs.Info().Type == "ntfs" || p.fs.Info().Type == "vfat" || p.fs.Info().Type == "exfat" {
		p.path = path.Clean("/" + strings.ReplaceAll(req.Path, `\`, "/")) // no name there has a backslash
	}
	if p.id, err = p.fs.Walk(p.path); err != nil {
		return p, fmt.Errorf("%s: %w", p.path, err)
	}
	return p, nil
}

// choose finds the volume that a request names, or the only one.
func (g *guest) choose(volume, name string) (*mount.Volume, error) {
	if volume != "" {
		return g.volume(volume)
	}
	var readable []*mount.Volume
	for _, v := range g.machine.Volumes() {
		if v.Readable() {
			readable = append(readable, v)
		}
	}
	if len(readable) == 1 {
		return readable[0], nil
	}
	var names []string
	for _, v := range readable {
		names = append(names, v.Name)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("the point has no volume that can be read: %w", guestfs.ErrUnknown)
	}
	return nil, &plugin.Error{Code: plugin.CodeAmbiguous, Summary: "it is not known on which volume the path is", Object: name,
		Remedy: "name the volume: " + strings.Join(names, ", ")}
}

// ListFiles implements [plugin.Service].
func (e *Engine) ListFiles(ctx context.Context, req plugin.FileRequest, fn func(plugin.File) error) error {
	return e.withGuest(ctx, req, func(g *guest) error {
		if req.Volume == "" && req.Path == "" {
			return g.volumes(fn)
		}
		p, err := g.find(req)
		if err != nil {
			return err
		}
		return p.walk(ctx, req, func(at place, a guestfs.Attr) error {
			f, err := at.describe(a)
			if err != nil {
				return err
			}
			return fn(f)
		})
	})
}

// StatFile implements [plugin.Service].
func (e *Engine) StatFile(ctx context.Context, req plugin.FileRequest) (plugin.File, error) {
	var out plugin.File
	err := e.withGuest(ctx, req, func(g *guest) error {
		p, err := g.find(req)
		if err != nil {
			return err
		}
		if p.fs == nil { // above the drives of Windows, where no file system is
			out = plugin.File{Path: "/", Type: "dir"}
			return nil
		}
		a, err := p.fs.Stat(p.id)
		if err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
		out, err = p.describe(a)
		return err
	})
	return out, err
}

// volumes lists the volumes, readable or not, with the places where the guest mounts them, and what stands in the way of
// others.
func (g *guest) volumes(fn func(plugin.File) error) error {
	systems := g.machine.Systems()
	for _, v := range g.machine.Volumes() {
		f := plugin.File{Path: v.Name, Type: "volume", Size: v.Size}
		notes := mountedAt(systems, v)
		for _, s := range []string{v.Type, v.Label, v.UUID, v.Advice} {
			if s != "" {
				notes = append(notes, s)
			}
		}
		if v.Missing != "" {
			notes = append(notes, "missing: "+v.Missing)
		}
		if v.Readable() {
			if system, err := v.Open(); err != nil {
				notes = append(notes, err.Error())
			} else {
				for _, n := range system.Info().Notes {
					notes = append(notes, n.Text)
				}
			}
		}
		f.Note = strings.Join(notes, ", ")
		if err := fn(f); err != nil {
			return err
		}
	}
	for _, p := range g.machine.Problems() {
		if err := fn(plugin.File{Path: cmp.Or(p.Where, "volumes"), Type: "volume", Note: "cannot be used: " + p.Text}); err != nil {
			return err
		}
	}
	return nil
}

// mountedAt tells which systems a volume holds, and where they mount it.
func mountedAt(systems []mount.System, v *mount.Volume) []string {
	var notes []string
	for _, s := range systems {
		if s.Root == v && s.Name != "" {
			notes = append(notes, s.Name)
		}
		for _, p := range s.Mounts {
			if p.Volume != v {
				continue
			}
			note := "mounted at " + p.Path
			if p.Dir != "" {
				note = "its directory " + p.Dir + " mounted at " + p.Path
			}
			if p.Guess {
				note += " (a guess)"
			}
			notes = append(notes, note)
		}
		for _, n := range s.Notes {
			if s.Root == v {
				notes = append(notes, n.Text)
			}
		}
	}
	return notes
}

// maxDepth bounds walking a guest's directories, whose loops are the guest's to make.
const maxDepth = 1024

// walk calls fn for a file, the entries of a directory, or everything below it, by the names that req wants.
func (p place) walk(ctx context.Context, req plugin.FileRequest, fn func(place, guestfs.Attr) error) error {
	if p.fs == nil {
		return p.drives(ctx, req, fn)
	}
	a, err := p.fs.Stat(p.id)
	if err != nil {
		return err
	}
	if a.Type != guestfs.Directory {
		return fn(p, a)
	}
	return p.below(ctx, req, fn, map[inode]bool{p.inode(): true})
}

// below walks a directory. above are the directories it lies in: one of them again is a loop.
func (p place) below(ctx context.Context, req plugin.FileRequest, fn func(place, guestfs.Attr) error, above map[inode]bool) error {
	if len(above) > maxDepth {
		return fmt.Errorf("%s: %w: directories are nested more than %d deep", p.path, guestfs.ErrDamaged, maxDepth)
	}
	for entry, err := range p.fs.ReadDir(p.id, 0) {
		if err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		at := p.child(entry)
		a, err := at.fs.Stat(at.id)
		if err != nil {
			return fmt.Errorf("%s: %w", at.path, err)
		}
		if wanted(entry.Name, req.Globs) {
			if err := fn(at, a); err != nil {
				return err
			}
		}
		if req.Recursive && a.Type == guestfs.Directory && !above[at.inode()] {
			above[at.inode()] = true
			err := at.below(ctx, req, fn, above)
			delete(above, at.inode())
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// join appends a guest's name to a path. Unlike path.Join it leaves the name's bytes alone.
func join(dir, name string) string {
	if strings.HasSuffix(dir, "/") {
		return dir + name
	}
	return dir + "/" + name
}

func wanted(name string, globs []string) bool {
	return len(globs) == 0 || slices.ContainsFunc(globs, func(g string) bool {
		ok, _ := path.Match(g, name)
		return ok
	})
}

// describe is a place in the contract's form.
func (p place) describe(a guestfs.Attr) (plugin.File, error) {
	f := plugin.File{Path: p.path, Type: typeName(a.Type), Size: a.Size, Mode: a.Mode, UID: a.UID, GID: a.GID, ModTime: a.Mtime, Links: a.Links}
	var err error
	if a.Type == guestfs.Symlink {
		if f.Link, err = p.fs.Readlink(p.id); err != nil {
			f.Note = err.Error()
		}
	}
	xattrs, err := p.fs.Xattrs(p.id)
	if err != nil {
		f.Note = err.Error()
	}
	for _, x := range xattrs {
		f.Xattrs = append(f.Xattrs, x.Name)
	}
	streams, err := p.fs.Streams(p.id)
	if err != nil {
		f.Note = err.Error()
	}
	for _, s := range streams {
		f.Streams = append(f.Streams, s.Name)
	}
	return f, nil
}

func typeName(t guestfs.Type) string {
	switch t {
	case guestfs.Regular:
		return "file"
	case guestfs.Directory:
		return "dir"
	case guestfs.Symlink:
		return "symlink"
	case guestfs.CharDevice:
		return "chardev"
	case guestfs.BlockDevice:
		return "device"
	case guestfs.FIFO:
		return "fifo"
	case guestfs.Socket:
		return "socket"
	}
	return "unknown"
}

// ReadFile implements [plugin.Service].
func (e *Engine) ReadFile(ctx context.Context, req plugin.FileRequest, fn func(plugin.Frame) error) error {
	return e.withGuest(ctx, req, func(g *guest) error {
		p, err := g.find(req)
		if err != nil {
			return err
		}
		if p.fs == nil {
			return &plugin.Error{Code: plugin.CodeFile, Summary: "the path names no drive", Object: req.Path, Remedy: `begin it with one: C:\`}
		}
		f, err := p.fs.Open(p.id, req.Stream)
		if err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
		end := f.Size()
		if req.Length > 0 {
			end = req.Offset + req.Length
		}
		if req.Offset < 0 || req.Length < 0 || end < req.Offset || end > f.Size() {
			return invalid("offset", fmt.Sprintf("bytes %d+%d are not all in a file of %d", req.Offset, req.Length, f.Size()), "stay within the file")
		}
		runs, err := f.Runs()
		if err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
		emit := frames(fn)
		buf := make([]byte, frameSize)
		for _, run := range runs {
			lo, hi := max(run.File.Off, req.Offset), min(run.File.End(), end)
			if lo >= hi {
				continue
			}
			if run.Kind == guestfs.Zero {
				if err := emit(lo, hi-lo, nil); err != nil {
					return err
				}
				continue
			}
			for off := lo; off < hi; {
				b := buf[:min(int64(len(buf)), hi-off)]
				if n, err := f.ReadAt(b, off); n < len(b) {
					return fmt.Errorf("%s at %d: %w", p.path, off+int64(n), err)
				}
				if err := emit(off, int64(len(b)), b); err != nil {
					return err
				}
				off += int64(len(b))
			}
		}
		return nil
	})
}
