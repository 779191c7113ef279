package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/chunker"
	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vsphere"
)

// Guest files as ordinary restic files: /<machine>/files/<volume>/..., so that restic restore, mount and find work on
// them.
//
// The guest's disks are read through what is known of them: bytes that change tracking says are unchanged come from
// the previous point's image where there is one. A file whose metadata and extents did not change is not read at all;
// its chunks are those of the previous point.

// fileBackup stores the guest files of one machine.
type fileBackup struct {
	sel     plugin.FileSelection
	repo    *repo.Repository
	writer  *repo.Writer
	cutter  *chunker.Cutter
	scope   scope
	meter   *meter
	dirty   map[int]extent.Set // by the number of the disk; a disk that is missing changed everywhere
	readers chan struct{}      // one for each file that is read at a time

	files, kept atomic.Int64
	notes       []string
	missed      []missedVolume
}

// missedVolume is a volume that was asked for by name and cannot be read.
type missedVolume struct{ name, why string }

// guestDisk is a disk of the snapshot as the guest's file systems are read from it.
type guestDisk struct {
	name  string
	size  int64
	live  io.ReaderAt
	base  io.ReaderAt // the previous point's image; nil: none
	dirty extent.Set  // bytes that base does not hold; only with base
}

// reader is the disk, taken from the previous point as far as that is the same.
func (d guestDisk) reader() io.ReaderAt {
	if d.base == nil {
		return aligned{d.live, d.size}
	}
	const unit = 64 << 10
	return &chunker.Overlay{Base: d.base, Top: aligned{d.live, d.size}, Extents: d.dirty.Align(unit, d.size)}
}

// aligned reads any bytes of a disk that gives whole sectors only.
type aligned struct {
	disk io.ReaderAt
	size int64
}

func (a aligned) ReadAt(p []byte, off int64) (int, error) {
	if off%vddk.SectorSize == 0 && len(p)%vddk.SectorSize == 0 {
		return a.disk.ReadAt(p, off)
	}
	lo := off &^ (vddk.SectorSize - 1)
	hi := min((off+int64(len(p))+vddk.SectorSize-1)&^(vddk.SectorSize-1), a.size)
	if lo >= hi {
		return 0, io.EOF
	}
	buf := make([]byte, hi-lo)
	n, err := a.disk.ReadAt(buf, lo)
	if int64(n) < off-lo {
		return 0, err
	}
	copied := copy(p, buf[off-lo:n])
	if copied == len(p) {
		return copied, nil
	}
	if err == nil {
		err = io.EOF
	}
	return copied, err
}

// guestFiles stores the guest's files from the snapshot.
func (j *machineBackup) guestFiles(ctx context.Context, r *reading, s *vsphere.Snapshot) (err error) {
	j.scope.phase(plugin.PhaseFiles)
	m, end := j.scope.meter(plugin.PhaseFiles, 0)
	defer end()
	b := &fileBackup{sel: *j.run.req.Files, repo: j.run.repo, writer: r.writer, cutter: j.run.cutter, scope: j.scope, meter: m,
		dirty: map[int]extent.Set{}, readers: make(chan struct{}, 2*cpus())}
	var disks []guestDisk
	var open []vddk.Disk
	defer func() {
		for _, d := range open {
			err = errors.Join(err, d.Close())
		}
	}()
	for _, d := range s.Disks() {
		if d.Unprotected != "" {
			continue
		}
		disk, _, err := j.openDisk(ctx, vddk.Spec{VM: r.vm.ID(), Snapshot: s.ID(), Key: d.Key, Path: d.Path, Capacity: d.Capacity, Encrypted: d.Encrypted}, j.scope.on(d.Name))
		if err != nil {
			return err
		}
		open = append(open, disk)
		g := guestDisk{name: d.Name, size: disk.Size(), live: disk}
		if dirty, ok, err := j.changedFor(ctx, s, d, r.prev); err != nil {
			return err
		} else if ok {
			b.dirty[len(disks)] = dirty
			if old := r.prev.manifest.diskByUUID(d.UUID); old.Skipped == "" {
				base, err := r.prev.openDisk(ctx, *old)
				if err != nil {
					return err
				}
				g.base, g.dirty = base, dirty
			}
		}
		disks = append(disks, g)
	}
	var old *restic.Tree
	if r.prev != nil && r.prev.manifest != nil {
		old = subtree(ctx, j.run.repo, r.prev.dir, filesDir)
	}
	tree, err := b.store(ctx, disks, old)
	if err != nil {
		return fmt.Errorf("guest files: %w", guestFailure(err))
	}
	j.files = &tree
	for _, v := range b.missed {
		j.warn(warning(plugin.CodeFile, "the guest's files on volume "+v.name+" are not in the point", v.why, "restore the disk to reach them, or leave the volume out of the selection"))
		b.notes = append(b.notes, v.name+" is left out: "+v.why)
	}
	j.manifest.Files = &manifestFiles{Files: b.files.Load(), Kept: b.kept.Load(), Notes: b.notes}
	for _, n := range b.notes {
		j.scope.info(plugin.CodeFile, "guest files", n)
	}
	return nil
}

// changedFor asks what changed on a disk since the previous point; false when that is not to be trusted.
func (j *machineBackup) changedFor(ctx context.Context, s *vsphere.Snapshot, d vsphere.Disk, prev *loadedPoint) (extent.Set, bool, error) {
	if prev == nil || prev.manifest == nil || j.run.req.Full {
		return nil, false, nil
	}
	facts := diskFacts{name: d.Name, uuid: d.UUID, capacity: d.Capacity, changeID: string(d.ChangeID), chain: chainOf(d)}
	v := judge(facts, j.facts, prev.manifest.withoutImages())
	if v.since == "" {
		return nil, false, nil
	}
	dirty, err := s.Changed(ctx, d, vsphere.ChangeID(v.since))
	if errors.Is(err, vsphere.ErrChangeTracking) {
		return nil, false, nil
	}
	return dirty, err == nil, err
}

// store walks the selected volumes and returns the tree that holds a directory for each. old is the previous point's,
// nil when it had none.
func (b *fileBackup) store(ctx context.Context, disks []guestDisk, old *restic.Tree) (restic.ID, error) {
	var open []mount.Disk
	for _, d := range disks {
		open = append(open, mount.Disk{Name: d.name, R: d.reader(), Size: d.size})
	}
	machine := mount.Open(open)
	g := &guest{machine: machine}
	systems := machine.Systems()
	chosen, err := b.volumes(g)
	if err != nil {
		return restic.ID{}, err
	}
	var out restic.Tree
	for _, v := range chosen {
		system, err := v.Open()
		if err != nil && len(b.sel.Volumes) > 0 {
			b.missed = append(b.missed, missedVolume{v.Name, err.Error()})
			continue
		}
		if err != nil {
			b.notes = append(b.notes, err.Error())
			continue
		}
		for _, n := range system.Info().Notes {
			b.notes = append(b.notes, v.Name+": "+n.Text)
		}
		name := safeName(v.Name)
		at := place{fs: system, id: system.Root(), path: "/"}
		a, err := system.Stat(at.id)
		if err != nil {
			return restic.ID{}, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		w := &volumeBackup{fileBackup: b, number: uint64(len(out.Nodes) + 1), above: map[guestfs.ID]bool{at.id: true},
			paths: newGuestPaths(systems, v, system.Info().FoldCase)}
		id, _, err := w.directory(ctx, at, subtree(ctx, b.repo, old, name), false)
		if err != nil {
			return restic.ID{}, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		n := nodeOf(name, a)
		n.Subtree = &id
		out.Nodes = append(out.Nodes, n)
	}
	slices.SortFunc(out.Nodes, func(x, y restic.Node) int { return strings.Compare(x.Name, y.Name) })
	return b.writer.SaveTree(&out)
}

// volumes are the readable volumes that the selection wants.
func (b *fileBackup) volumes(g *guest) ([]*mount.Volume, error) {
	if len(b.sel.Volumes) == 0 {
		var out []*mount.Volume
		for _, v := range g.machine.Volumes() {
			if v.Readable() {
				out = append(out, v)
			} else if v.Advice != "" {
				b.notes = append(b.notes, v.Name+" is left out: "+v.Type+": "+v.Advice)
			}
		}
		return out, nil
	}
	var out []*mount.Volume
	for _, want := range b.sel.Volumes {
		before := len(out)
		for _, v := range g.machine.Volumes() {
			if ok, _ := path.Match(want, v.Name); ok && v.Readable() && !slices.Contains(out, v) {
				out = append(out, v)
			}
		}
		if len(out) > before {
			continue
		}
		v, err := g.volume(want)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out, nil
}

// subtree loads a directory of a tree; nil when there is none or it cannot be read, which costs reading only.
func subtree(ctx context.Context, r *repo.Repository, t *restic.Tree, name string) *restic.Tree {
	if t == nil {
		return nil
	}
	n := t.Find(name)
	if n == nil || n.Subtree == nil {
		return nil
	}
	sub, err := r.LoadTree(ctx, *n.Subtree)
	if err != nil {
		return nil
	}
	return sub
}

// volumeBackup stores the files of one volume.
type volumeBackup struct {
	*fileBackup
	number uint64 // of the volume, as device id
	paths  guestPaths
	above  map[guestfs.ID]bool // directories that the present one lies in
}

// directory stores a directory and tells whether it holds anything that is wanted. inside says that a directory
// above matched an include.
func (b *volumeBackup) directory(ctx context.Context, dir place, old *restic.Tree, inside bool) (restic.ID, bool, error) {
	if len(b.above) > maxDepth {
		return restic.ID{}, false, fmt.Errorf("%s: %w: directories are nested more than %d deep", dir.path, guestfs.ErrDamaged, maxDepth)
	}
	var nodes []*restic.Node
	files, fctx := errgroup.WithContext(ctx)
	walk := func() error {
		for entry, err := range dir.fs.ReadDir(dir.id, 0) {
			if err != nil {
				return fmt.Errorf("%s: %w", dir.path, err)
			}
			if err := context.Cause(fctx); err != nil {
				return err
			}
			at := place{fs: dir.fs, id: entry.ID, path: join(dir.path, entry.Name)}
			if b.paths.match(b.sel.Excludes, at.path) {
				continue
			}
			wanted := inside || len(b.sel.Includes) == 0 || b.paths.match(b.sel.Includes, at.path)
			a, err := at.fs.Stat(entry.ID)
			if err != nil {
				return fmt.Errorf("%s: %w", at.path, err)
			}
			n := nodeOf(entry.Name, a)
			n.DeviceID = b.number
			if err := describeNode(&n, at, a); err != nil {
				return fmt.Errorf("%s: %w", at.path, err)
			}
			switch {
			case a.Type == guestfs.Directory:
				if b.above[entry.ID] {
					continue
				}
				b.above[entry.ID] = true
				id, any, err := b.directory(ctx, at, subtree(ctx, b.repo, old, entry.Name), wanted)
				delete(b.above, entry.ID)
				if err != nil {
					return err
				}
				if !wanted && !any {
					continue
				}
				n.Subtree = &id
				nodes = append(nodes, &n)
			case !wanted || a.Type == guestfs.Other || a.Type == guestfs.Unknown:
				continue
			case a.Type == guestfs.Regular:
				node := &n
				nodes = append(nodes, node)
				if err := b.regular(fctx, files, at, a, node, find(old, entry.Name)); err != nil {
					return err
				}
			default:
				nodes = append(nodes, &n)
			}
			if !wanted {
				continue
			}
			more, err := b.streams(fctx, files, at, a)
			if err != nil {
				return err
			}
			nodes = append(nodes, more...)
		}
		return nil
	}
	err := walk()
	if failed := files.Wait(); err == nil || errors.Is(err, context.Canceled) && failed != nil {
		err = errors.Join(failed)
	}
	if err != nil {
		return restic.ID{}, false, err
	}
	tree := restic.Tree{Nodes: make([]restic.Node, len(nodes))}
	for i, n := range nodes {
		tree.Nodes[i] = *n
	}
	slices.SortFunc(tree.Nodes, func(x, y restic.Node) int { return strings.Compare(x.Name, y.Name) })
	tree.Nodes = slices.CompactFunc(tree.Nodes, func(x, y restic.Node) bool { return x.Name == y.Name })
	id, err := b.writer.SaveTree(&tree)
	return id, len(nodes) > 0, err
}

// streams stores the alternate data streams of a file or directory as files beside it, "FILE:STREAM".
func (b *volumeBackup) streams(ctx context.Context, g *errgroup.Group, at place, a guestfs.Attr) ([]*restic.Node, error) {
	streams, err := at.fs.Streams(at.id)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at.path, err)
	}
	var nodes []*restic.Node
	for _, s := range streams {
		of := a
		of.Type, of.Mode = guestfs.Regular, a.Mode&^0o111
		n := nodeOf(streamFile(path.Base(at.path), s.Name), of)
		n.Size, n.Links, n.Inode, n.DeviceID = uint64(s.Size), 1, 0, b.number
		nodes = append(nodes, &n)
		if err := b.content(ctx, g, at, s.Name, &n); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

func find(t *restic.Tree, name string) *restic.Node {
	if t == nil {
		return nil
	}
	return t.Find(name)
}

// regular stores the content of a file, or keeps what the previous point has of it.
func (b *volumeBackup) regular(ctx context.Context, g *errgroup.Group, at place, a guestfs.Attr, n *restic.Node, old *restic.Node) error {
	b.files.Add(1)
	if same, err := b.unchanged(ctx, at, a, n, old); err != nil {
		return err
	} else if same {
		b.kept.Add(1)
		n.Content = old.Content
		b.meter.done.Add(a.Size)
		return nil
	}
	return b.content(ctx, g, at, "", n)
}

// unchanged reports whether a file is what the previous point holds: the same inode, size and times, none of its
// extents changed or taken from a replayed journal, and all its chunks still in the repository.
func (b *volumeBackup) unchanged(ctx context.Context, at place, a guestfs.Attr, n, old *restic.Node) (bool, error) {
	if old == nil || old.Type != restic.FileNode || old.Size != n.Size || old.Inode != n.Inode ||
		!old.ModTime.Equal(n.ModTime) || !old.ChangeTime.Equal(n.ChangeTime) {
		return false, nil
	}
	f, err := at.fs.Open(at.id, "")
	if err != nil {
		return false, fmt.Errorf("%s: %w", at.path, err)
	}
	runs, err := f.Runs()
	if err != nil {
		return false, fmt.Errorf("%s: %w", at.path, err)
	}
	if slices.ContainsFunc(runs, func(r guestfs.Run) bool { return r.Replayed }) {
		return false, nil
	}
	where, err := mount.Located(at.fs, runs)
	if err != nil {
		return false, fmt.Errorf("%s: %w", at.path, err)
	}
	for disk, set := range where {
		dirty, known := b.dirty[disk]
		if !known || len(dirty.Intersect(set)) > 0 {
			return false, nil
		}
	}
	var sum uint64
	for _, id := range old.Content {
		size, ok, err := b.repo.BlobSize(ctx, restic.BlobHandle{Type: restic.DataBlob, ID: id})
		if err != nil {
			return false, err
		}
		if !ok {
			return false, nil
		}
		sum += uint64(size)
	}
	return sum == n.Size, nil
}

// content stores a stream of a file in the background.
func (b *volumeBackup) content(ctx context.Context, g *errgroup.Group, at place, stream string, n *restic.Node) error {
	select {
	case b.readers <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	g.Go(func() error {
		defer func() { <-b.readers }()
		f, err := at.fs.Open(at.id, stream)
		if errors.Is(err, guestfs.ErrEncrypted) || errors.Is(err, guestfs.ErrUnsupported) {
			n.Error, n.Size, n.Content = err.Error(), 0, []restic.ID{}
			b.scope.info(plugin.CodeFile, "a file's content cannot be read", at.path+": "+err.Error())
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", at.path, err)
		}
		runs, err := f.Runs()
		if err != nil {
			return fmt.Errorf("%s: %w", at.path, err)
		}
		var holes []extent.Extent
		for _, r := range runs {
			if r.Kind == guestfs.Zero {
				holes = append(holes, r.File)
			}
		}
		plan := chunker.Plan{Size: f.Size(), Holes: extent.Of(holes...)}
		c := b.writer.Content()
		for chunk, err := range plan.Chunks(f, b.cutter) {
			switch {
			case err != nil:
				return fmt.Errorf("%s: %w", at.path, err)
			case chunk.Zero:
				err = c.Zeros(int64(chunk.Len))
			default:
				err = c.AppendTaken(chunk.Data, chunk.Take)
			}
			if err != nil {
				return err
			}
			b.meter.done.Add(int64(chunk.Len))
		}
		n.Size = uint64(f.Size())
		n.Content, err = c.IDs()
		return err
	})
	return nil
}

// nodeOf is a file's metadata as restic has it.
func nodeOf(name string, a guestfs.Attr) restic.Node {
	n := restic.Node{Name: name, UID: a.UID, GID: a.GID, Inode: a.ID.File, Links: uint64(a.Links), ModTime: a.Mtime, AccessTime: a.Mtime, ChangeTime: a.Ctime}
	if a.Ctime.IsZero() {
		n.ChangeTime = a.Mtime
	}
	n.Mode = fs.FileMode(a.Mode & 0o777)
	for bit, mode := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if a.Mode&bit != 0 {
			n.Mode |= mode
		}
	}
	switch a.Type {
	case guestfs.Directory:
		n.Type, n.Mode = restic.DirNode, n.Mode|fs.ModeDir
	case guestfs.Symlink:
		n.Type, n.Mode = restic.SymlinkNode, n.Mode|fs.ModeSymlink
	case guestfs.CharDevice:
		n.Type, n.Mode = restic.CharDevNode, n.Mode|fs.ModeDevice|fs.ModeCharDevice
	case guestfs.BlockDevice:
		n.Type, n.Mode = restic.DevNode, n.Mode|fs.ModeDevice
	case guestfs.FIFO:
		n.Type, n.Mode = restic.FIFONode, n.Mode|fs.ModeNamedPipe
	case guestfs.Socket:
		n.Type, n.Mode = restic.SocketNode, n.Mode|fs.ModeSocket
	default:
		n.Type, n.Size, n.Content = restic.FileNode, uint64(a.Size), []restic.ID{}
	}
	if n.Type == restic.CharDevNode || n.Type == restic.DevNode {
		n.Device = deviceNumber(a.Major, a.Minor)
	}
	return n
}

// deviceNumber is a device as Linux encodes it in 64 bits (glibc, gnu_dev_makedev).
func deviceNumber(major, minor uint32) uint64 {
	return uint64(major)&0xfff<<8 | uint64(major)&^0xfff<<32 | uint64(minor)&0xff | uint64(minor)&^0xff<<12
}

// describeNode adds what takes a further look: a link's target and extended attributes.
func describeNode(n *restic.Node, at place, a guestfs.Attr) error {
	if a.Type == guestfs.Symlink {
		target, err := at.fs.Readlink(at.id)
		if err != nil {
			return err
		}
		n.LinkTarget = target
	}
	xattrs, err := at.fs.Xattrs(at.id)
	if err != nil {
		return err
	}
	for _, x := range xattrs {
		n.ExtendedAttributes = append(n.ExtendedAttributes, restic.ExtendedAttribute{Name: x.Name, Value: x.Value})
	}
	slices.SortFunc(n.ExtendedAttributes, func(x, y restic.ExtendedAttribute) int { return strings.Compare(x.Name, y.Name) })
	return nil
}
