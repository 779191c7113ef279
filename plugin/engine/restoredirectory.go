package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk/vmdk"
)

// Restores to files on this machine.
//
// While the files of a disk are being written, a file beside them says so: <disk>.incomplete. It is what makes the
// restore one that can be run again: where it is found, the files that are there are compared with the point, and only
// what differs is written. Compressed forms cannot be continued; they are begun anew.

// incompleteSuffix names the file that says that a disk's files are not all written.
const incompleteSuffix = ".incomplete"

// directory restores to files on this machine.
func (j *restoreJob) directory(ctx context.Context) error {
	if j.req.Directory == "" || j.req.Directory == "-" {
		return invalid("directory", "no directory to restore to", "name one; `vmkeep cat` writes a disk to standard output")
	}
	home := filepath.Join(j.req.Directory, safeName(j.point.manifest.Machine.Name))
	made := directories{}
	var restore func(context.Context, manifestDisk, string) error
	switch j.req.Format {
	case plugin.FormatRaw, plugin.FormatSplit, plugin.FormatFlat, "":
		restore = j.diskToFiles
	case plugin.FormatStreamOptimized:
		restore = j.diskToStream
	case plugin.FormatOVA:
		if err := made.add(j.req.Directory); err != nil {
			return err
		}
		if err := j.toOVA(ctx, home+".ova"); err != nil {
			return err
		}
		return made.sync()
	default:
		return invalid("format", fmt.Sprintf("unknown format %q", j.req.Format), "use raw, vmdk, flat, stream or ova")
	}
	if err := made.add(home); err != nil {
		return err
	}
	for i := range j.point.dir.Nodes {
		n := &j.point.dir.Nodes[i]
		if n.Subtree != nil || path.Ext(n.Name) == ".vmdk" || n.Name != safeName(n.Name) {
			continue
		}
		data, err := loadFile(ctx, j.repo, n, manifestLimit)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		if err := j.smallFile(filepath.Join(home, n.Name), data); err != nil {
			return err
		}
	}
	for _, d := range j.disks {
		if err := restore(ctx, d, home); err != nil {
			return err
		}
	}
	return made.sync()
}

// smallFile writes a file. One that is there with the same content is fine.
func (j *restoreJob) smallFile(name string, data []byte) error {
	if have, err := os.ReadFile(name); err != nil || string(have) != string(data) {
		f, err := j.createFile(name, false)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	j.report.Files = append(j.report.Files, name)
	return nil
}

// createFile opens a file to write and read. One that exists is opened as it is where the restore goes on, emptied
// where overwriting was asked for, and refused otherwise.
func (j *restoreJob) createFile(name string, again bool) (*os.File, error) {
	flags := os.O_RDWR | os.O_CREATE
	switch {
	case again:
	case j.req.Force:
		flags |= os.O_TRUNC
	default:
		flags |= os.O_EXCL
	}
	return os.OpenFile(name, flags, 0o644)
}

// incomplete says in a file that the files called base are being written, runs fn, and takes it back when fn succeeded.
// again: it was said already.
func (j *restoreJob) incomplete(base string, fn func(again bool) error) error {
	mark := base + incompleteSuffix
	f, err := os.OpenFile(mark, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	again := errors.Is(err, fs.ErrExist)
	if err != nil && !again {
		return err
	}
	if !again {
		_, err := fmt.Fprintf(f, "The restore of point %s into the files beside this one has not ended.\nRun it again: it goes on where it stopped, and removes this file.\n", j.point.snapshot.ID)
		if err = errors.Join(err, f.Sync(), f.Close(), syncDirectory(filepath.Dir(mark))); err != nil {
			return errors.Join(err, os.Remove(mark))
		}
	}
	if err := fn(again); err != nil {
		if !again && errors.Is(err, fs.ErrExist) { // what is there is another's
			err = errors.Join(err, os.Remove(mark))
		}
		return err
	}
	if err := syncDirectory(filepath.Dir(mark)); err != nil {
		return err
	}
	return os.Remove(mark)
}

// directories are those whose entries have to be made durable.
type directories map[string]bool

// add makes a directory, with those above it that are missing, and notes all that get an entry by it. The one above the
// first that is there counts too: an earlier run may have made that one and not lived to make it durable.
func (d directories) add(name string) error {
	for at := filepath.Clean(name); ; at = filepath.Dir(at) {
		d[at] = true
		if exists(at) {
			d[filepath.Dir(at)] = true
			break
		}
	}
	return os.MkdirAll(name, 0o755)
}

// sync makes the entries durable. A directory that the account may not read is its owner's.
func (d directories) sync() error {
	for name := range d {
		if err := syncDirectory(name); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

// syncDirectory makes the entries of a directory durable, where the system has a way to.
func syncDirectory(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrInvalid) || errors.Is(err, fs.ErrPermission) {
		err = nil // Windows has none
	}
	return errors.Join(err, d.Close())
}

// diskToFiles restores a disk to files that hold its bytes as they are.
func (j *restoreJob) diskToFiles(ctx context.Context, d manifestDisk, home string) error {
	base := filepath.Join(home, d.Name)
	return j.incomplete(base, func(again bool) (err error) {
		files := &fileDisk{size: d.Capacity, unit: max(d.Capacity, 1), made: directories{}}
		defer func() { err = errors.Join(err, files.Close()) }()
		var text []byte
		names := []string{base + ".raw"}
		switch j.req.Format {
		case plugin.FormatFlat:
			names[0] = base + "-flat.vmdk"
			text = vmdk.Descriptor{Type: vmdk.TypeFlat, UUID: d.UUID, Adapter: adapterOf(d), Extents: []vmdk.Extent{{File: d.Name + "-flat.vmdk", Size: d.Capacity}}}.Encode()
		case plugin.FormatSplit:
			files.unit, names = PartSize, nil
			for n := range partCount(d.Capacity) {
				dir := filepath.Join(base, partName(n))
				if err := files.made.add(dir); err != nil {
					return err
				}
				names = append(names, filepath.Join(dir, partFile))
			}
			text = descriptor(d.Name, d.Capacity, d.UUID)
		}
		holes := true
		for n, name := range names {
			f, err := j.createFile(name, again)
			if err != nil {
				return err
			}
			size := min(files.unit, d.Capacity-int64(n)*files.unit)
			if err := files.add(f, size); err != nil {
				return err
			}
			if !j.req.Sparse {
				err := allocate(f, size)
				if err != nil && !errors.Is(err, errors.ErrUnsupported) {
					return fmt.Errorf("allocate %s: %w", name, err)
				}
				holes = holes && err == nil
			}
			j.report.Files = append(j.report.Files, name)
		}
		if text != nil {
			if err := j.smallFile(base+".vmdk", text); err != nil {
				return err
			}
		}
		out := output{disk: d, target: files, fresh: holes, flush: files.sync}
		if again {
			out.reason = reasonContinued
			if err := j.onlyDifferent(ctx, &out); err != nil {
				return err
			}
		}
		return j.write(ctx, out)
	})
}

// adapterOf is the kind of adapter that a descriptor names.
func adapterOf(d manifestDisk) string {
	if strings.HasPrefix(d.Name, "ide") {
		return "ide"
	}
	return "lsilogic"
}

// diskToStream restores a disk to a streamOptimized VMDK.
func (j *restoreJob) diskToStream(ctx context.Context, d manifestDisk, home string) error {
	base := filepath.Join(home, d.Name)
	return j.incomplete(base, func(again bool) (err error) {
		f, err := j.createFile(base+".vmdk", again)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := f.Truncate(0); err != nil {
			return err
		}
		j.report.Files = append(j.report.Files, f.Name())
		_, err = j.streamTo(ctx, d, f, 0, nil)
		return err
	})
}

// streamTo writes a disk as a streamOptimized VMDK at off of a file, and the same bytes to also. It returns how many.
func (j *restoreJob) streamTo(ctx context.Context, d manifestDisk, f *os.File, off int64, also io.Writer) (int64, error) {
	var length int64
	err := j.restoreDisk(ctx, d, "", func(ctx context.Context, w *diskWriter) (io.ReaderAt, error) {
		out := &countedWriter{to: io.NewOffsetWriter(f, off), also: also, meter: w.meter}
		text := vmdk.Descriptor{UUID: d.UUID, Adapter: adapterOf(d), Extents: []vmdk.Extent{{File: d.Name + ".vmdk", Size: d.Capacity}}}
		err := vmdk.WriteStream(out, text, func(put vmdk.Put) error {
			return w.stream(ctx, extent.Extent{Len: d.Capacity}, func(off, n int64, data []byte) error {
				if data == nil {
					w.meter.skip(n)
					return nil
				}
				w.meter.work(n)
				return put(data, off)
			})
		})
		length = out.meter.stored.Load()
		w.written.Store(length)
		if errors.Is(err, vmdk.ErrTooLarge) {
			err = &plugin.Error{Code: plugin.CodeUnsupported, Summary: "the disk does not fit a streamOptimized VMDK", Object: d.Name, Err: err, Detail: err.Error(), Remedy: "restore it as raw, flat or vmdk"}
		}
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return nil, err
		}
		return vmdk.NewReader(io.NewSectionReader(f, off, length), length)
	})
	return length, err
}

// countedWriter writes twice and counts.
type countedWriter struct {
	to, also io.Writer // also may be nil
	meter    *meter
}

func (c *countedWriter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.meter.stored.Add(int64(n))
	if err == nil && c.also != nil {
		_, err = c.also.Write(p)
	}
	return n, err
}

// openFiles is how many files of one disk stay open. A disk of 62 TiB is 63,488 files, more than a process may open.
const openFiles = 128

// fileDisk is a disk that lies in files of unit bytes each. The first openFiles of them are open all the time, the
// others only while they are used: a write is about a mebibyte, beside which opening is nothing.
type fileDisk struct {
	size  int64
	unit  int64
	names []string
	files []*os.File // of the first names
	made  directories
	home  *os.File // a directory of the file system that holds those that are not open, where there are any
}

// add takes over an open file, which becomes size bytes long.
func (f *fileDisk) add(file *os.File, size int64) error {
	f.names = append(f.names, file.Name())
	if len(f.files) < openFiles {
		f.files = append(f.files, file)
		return file.Truncate(size)
	}
	err := file.Truncate(size)
	if f.home == nil && err == nil { // before the first write: syncfs(2) tells of errors since
		f.home, err = os.Open(filepath.Dir(file.Name()))
	}
	return errors.Join(err, file.Close())
}

// with calls fn with file n.
func (f *fileDisk) with(n int, fn func(*os.File) error) error {
	if n < len(f.files) {
		return fn(f.files[n])
	}
	file, err := os.OpenFile(f.names[n], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(fn(file), file.Close())
}

// each calls fn for the piece of p that lies in each file.
func (f *fileDisk) each(p []byte, off int64, fn func(file *os.File, p []byte, off int64) (int, error)) (done int, err error) {
	for len(p) > 0 {
		if off < 0 || off >= f.size {
			return done, io.EOF
		}
		at := off % f.unit
		n := int(min(int64(len(p)), f.unit-at))
		err := f.with(int(off/f.unit), func(file *os.File) error {
			m, err := fn(file, p[:n], at)
			done += m
			return err
		})
		if err != nil {
			return done, err
		}
		p, off = p[n:], off+int64(n)
	}
	return done, nil
}

func (f *fileDisk) ReadAt(p []byte, off int64) (int, error) { return f.each(p, off, (*os.File).ReadAt) }

// earlyWrite is the length in bytes from which a write is sent to the storage at once. What is shorter, the sectors that
// two chunks share above all, waits for its neighbours.
const earlyWrite = 64 << 10

// WriteAt writes, and has long writes sent to the storage while others are still being fetched: the restore promises to be
// durable in the end, which then is near, and dirty memory does not pile up.
func (f *fileDisk) WriteAt(p []byte, off int64) (int, error) {
	return f.each(p, off, func(file *os.File, p []byte, off int64) (int, error) {
		n, err := file.WriteAt(p, off)
		if err == nil && n >= earlyWrite {
			err = beginWriteback(file, off, int64(n))
		}
		return n, err
	})
}

// sync makes the files and the directories that were made for them durable.
func (f *fileDisk) sync() error {
	if f.home != nil {
		err := syncFileSystem(f.home)
		if !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	for n := range f.names {
		if err := f.with(n, (*os.File).Sync); err != nil {
			return err
		}
	}
	return f.made.sync()
}

func (f *fileDisk) Close() error {
	var err error
	for _, x := range f.files {
		err = errors.Join(err, x.Close())
	}
	if f.home != nil {
		err = errors.Join(err, f.home.Close())
	}
	return err
}
