package mounttest

import (
	"errors"
	"io"
	"io/fs"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Limits of what Poke does with one file system.
const (
	maxEntries = 600
	maxBytes   = 256 << 10 // of each file, and its last 4 KiB
)

// Poke uses everything of a file system, within limits, and ignores errors: for damaged ones. It returns how many
// entries it saw and how many calls gave an error.
func Poke(f *guestfs.FS) (entries, failures int) {
	p := poker{f: f, buf: make([]byte, 64<<10), seen: map[guestfs.ID]bool{}}
	p.dir(f.Root(), 0)
	return p.entries, p.failures
}

// Names reads all metadata of a file system and no content.
func Names(f *guestfs.FS) {
	p := poker{f: f, seen: map[guestfs.ID]bool{}}
	p.dir(f.Root(), 0)
}

type poker struct {
	f                 *guestfs.FS
	buf               []byte
	seen              map[guestfs.ID]bool
	entries, failures int
}

func (p *poker) err(err error) bool {
	for _, harmless := range []error{guestfs.ErrNotDir, guestfs.ErrNotLink, guestfs.ErrNotRegular, fs.ErrNotExist} {
		if errors.Is(err, harmless) {
			return true
		}
	}
	if err != nil {
		p.failures++
	}
	return err != nil
}

func (p *poker) dir(id guestfs.ID, depth int) {
	if p.seen[id] || depth > 80 {
		return
	}
	p.seen[id] = true
	for e, err := range p.f.ReadDir(id, 0) {
		if p.err(err) || p.entries >= maxEntries {
			return
		}
		p.entries++
		p.file(e.ID)
		p.dir(e.ID, depth+1)
	}
	_, err := p.f.Lookup(id, "no such name")
	p.err(err)
}

func (p *poker) file(id guestfs.ID) {
	_, err := p.f.Stat(id)
	p.err(err)
	_, err = p.f.Readlink(id)
	p.err(err)
	_, err = p.f.Xattrs(id)
	p.err(err)
	streams, err := p.f.Streams(id)
	p.err(err)
	for _, s := range append(streams, guestfs.Stream{}) {
		if p.buf == nil {
			break
		}
		f, err := p.f.Open(id, s.Name)
		if p.err(err) {
			continue
		}
		runs, err := f.Runs()
		p.err(err)
		for _, r := range runs[:min(len(runs), 100)] {
			p.err(p.f.Locate(r.Disk, func(device.Piece) bool { return true }))
		}
		for off := int64(0); off < min(f.Size(), maxBytes); off += int64(len(p.buf)) {
			if _, err := f.ReadAt(p.buf, off); err != nil && !errors.Is(err, io.EOF) {
				p.failures++
				break
			}
		}
		if _, err := f.ReadAt(p.buf[:4096], max(f.Size()-4096, 0)); err != nil && !errors.Is(err, io.EOF) {
			p.failures++
		}
	}
}
