package lab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// blockSize is the unit of copy on write in a delta: a delta holds a block or it does not.
const blockSize = 64 << 10

// The store is the content of every virtual disk of the lab.
//
// A disk is a chain of links. The base link is a flat file; every snapshot adds a delta link on top, a sparse
// file that holds the blocks written since. Freezing a disk is therefore one empty file, whatever its size, and
// what a link shows never changes once another link sits on it.
//
//	live:     web-000002.vmdk   reads: own blocks, else those of the parent ...
//	            | parent
//	frozen:   web-000001.vmdk
//	            | parent
//	base:     web.vmdk          a hole of the flat file reads as zeros
//
// Links are found by datastore path ("[ds1] web/web.vmdk"), the name that device backings and NFC clients use.
type store struct {
	root func(datastore string) (dir string, ok bool)

	mu    sync.Mutex
	links map[string]*link
}

// volume is what all links of one chain (or tree of chains) share.
type volume struct {
	mu    sync.RWMutex // content and shape of the chain: shared to read, exclusive to write or to reshape
	track *tracker     // nil: change tracking is not active
	keyed bool         // encrypted, as far as anybody can tell: the content is not
	uuid  string       // ddb.uuid, which stays with the files; empty: no machine has had them yet
}

type link struct {
	vol    *volume
	path   string // datastore path of the descriptor
	file   string // content, on this machine
	size   int64  // capacity in bytes
	parent *link  // nil: base
	have   bitmap // delta: which blocks this file holds
	thin   bool

	once sync.Mutex
	data *os.File // opened at the first touch

	holders []*holder // NFC sessions that have this very link open
}

// holder is one opener of a link.
type holder struct{ write bool }

var errLinkGone = errors.New("the disk file does not exist any more")

func newStore(root func(string) (string, bool)) *store {
	return &store{root: root, links: map[string]*link{}}
}

// splitPath cuts "[ds1] web/web.vmdk" into "ds1" and "web/web.vmdk".
func splitPath(p string) (datastore, file string, ok bool) {
	rest, found := strings.CutPrefix(p, "[")
	if !found {
		return "", "", false
	}
	datastore, file, found = strings.Cut(rest, "]")
	return datastore, strings.TrimSpace(file), found && datastore != ""
}

// joinPath is the inverse of splitPath.
func joinPath(datastore, file string) string {
	return strings.TrimSpace("[" + datastore + "] " + file)
}

// local is where a datastore path lies on this machine. Paths that leave the datastore are refused.
func (s *store) local(p string) (string, error) {
	ds, file, ok := splitPath(p)
	if !ok {
		return "", fmt.Errorf("%q is not a datastore path", p)
	}
	dir, ok := s.root(ds)
	if !ok {
		return "", fmt.Errorf("%q: no such datastore", p)
	}
	if file != "" && !filepath.IsLocal(filepath.FromSlash(file)) {
		return "", fmt.Errorf("%q leaves the datastore", p)
	}
	return filepath.Join(dir, filepath.FromSlash(file)), nil
}

// flatName is the path of the file with the content of the disk whose descriptor is p.
func flatName(p string) string { return strings.TrimSuffix(p, ".vmdk") + "-flat.vmdk" }

// deltaName is the same for a link with a parent (vSphere's SEsparse naming).
func deltaName(p string) string { return strings.TrimSuffix(p, ".vmdk") + "-sesparse.vmdk" }

// find returns the link at p, or nil.
func (s *store) find(p string) *link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.links[p]
}

// base registers the flat disk at p. The file is made at the first touch; one that exists keeps its content.
func (s *store) base(p string, size int64, thin bool) (*link, error) {
	file, err := s.local(flatName(p))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.links[p]; l != nil {
		return l, nil
	}
	l := &link{vol: &volume{}, path: p, file: file, size: size, thin: thin}
	s.links[p] = l
	return l, nil
}

// grow puts an empty delta on top of parent. The caller holds the volume's lock exclusively.
func (s *store) grow(parent *link, p string) (*link, error) {
	file, err := s.local(deltaName(p))
	if err != nil {
		return nil, err
	}
	l := &link{vol: parent.vol, path: p, file: file, size: parent.size, parent: parent, thin: true,
		have: newBitmap(parent.size)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links[p] != nil {
		return nil, fmt.Errorf("%s exists already", p)
	}
	s.links[p] = l
	return l, nil
}

// drop forgets the link at p and deletes its files.
func (s *store) drop(l *link) {
	s.mu.Lock()
	if s.links[l.path] == l {
		delete(s.links, l.path)
	}
	s.mu.Unlock()
	l.once.Lock()
	if l.data != nil {
		_ = l.data.Close()
		l.data = nil
	}
	gone := l.file
	l.file = ""
	l.once.Unlock()
	_ = os.Remove(gone)
	if p, err := s.local(l.path); err == nil {
		_ = os.Remove(p)
	}
}

// under returns the links whose descriptor lies at or below the datastore path p.
func (s *store) under(p string) (out []*link) {
	ds, file, ok := splitPath(p)
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.links {
		lds, lf, _ := splitPath(l.path)
		if lds == ds && (lf == file || strings.HasPrefix(lf, strings.TrimSuffix(file, "/")+"/")) {
			out = append(out, l)
		}
	}
	return out
}

// forgetUnder drops every link at or below p: its files are deleted.
func (s *store) forgetUnder(p string) {
	for _, l := range s.under(p) {
		s.drop(l)
	}
}

// children returns the links directly above l.
func (s *store) children(l *link) (kids []*link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.links {
		if k.parent == l {
			kids = append(kids, k)
		}
	}
	return kids
}

// freePath picks the next free name-00000N.vmdk beside the base of l, as vSphere does: N is the first number
// free in the directory, not the number of the snapshot.
func (s *store) freePath(l *link) string {
	for l.parent != nil {
		l = l.parent
	}
	stem := strings.TrimSuffix(l.path, ".vmdk")
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := 1; ; n++ {
		p := fmt.Sprintf("%s-%06d.vmdk", stem, n)
		if s.links[p] == nil {
			return p
		}
	}
}

// close closes every file.
func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.links {
		l.once.Lock()
		if l.data != nil {
			_ = l.data.Close()
			l.data = nil
		}
		l.file = ""
		l.once.Unlock()
	}
	s.links = map[string]*link{}
}

// open returns the link's file, made with the disk's capacity if need be.
func (l *link) open() (*os.File, error) {
	l.once.Lock()
	defer l.once.Unlock()
	if l.data != nil {
		return l.data, nil
	}
	if l.file == "" {
		return nil, fmt.Errorf("%s: %w", l.path, errLinkGone)
	}
	if err := os.MkdirAll(filepath.Dir(l.file), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(l.file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.Size() < l.size {
		err = f.Truncate(l.size)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	l.data = f
	return f, nil
}

// name is where the link's content lies.
func (l *link) name() string {
	l.once.Lock()
	defer l.once.Unlock()
	return l.file
}

// writeDescriptor writes the small text file that names the link's content and parent.
func (s *store) writeDescriptor(l *link) error {
	p, err := s.local(l.path)
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=fffffffe\n")
	if l.parent == nil {
		fmt.Fprintf(&b, "parentCID=ffffffff\ncreateType=\"vmfs\"\n\nRW %d VMFS \"%s\"\n", l.size/512, path.Base(flatName(l.path)))
	} else {
		fmt.Fprintf(&b, "parentCID=fffffffe\ncreateType=\"seSparse\"\nparentFileNameHint=\"%s\"\n\nRW %d SESPARSE \"%s\"\n",
			path.Base(l.parent.path), l.size/512, path.Base(deltaName(l.path)))
	}
	b.WriteString("\n#DDB\nddb.adapterType = \"lsilogic\"\nddb.virtualHWVersion = \"19\"\n")
	if l.thin {
		b.WriteString("ddb.thinProvisioned = \"1\"\n")
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		return err
	}
	return os.WriteFile(p, []byte(b.String()), 0o600)
}

// owner returns the link of the chain that holds block b; a base holds everything.
func (l *link) owner(b int64) *link {
	for l.parent != nil && !l.have.get(b) {
		l = l.parent
	}
	return l
}

// readAt fills p with the composed content at off. The caller holds the volume's lock, shared at least.
func (l *link) readAt(p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > l.size {
		return fmt.Errorf("%s: read of [%d, %d) beyond %d bytes", l.path, off, off+int64(len(p)), l.size)
	}
	for len(p) > 0 {
		from, n := l, int64(len(p))
		if l.parent != nil {
			b := off / blockSize
			from = l.owner(b)
			n = min(n, (b+1)*blockSize-off)
			for n < int64(len(p)) && l.owner((off+n)/blockSize) == from { // one read for a run of blocks
				n = min(int64(len(p)), n+blockSize)
			}
		}
		f, err := from.open()
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(io.NewSectionReader(f, off, n), p[:n]); err != nil {
			return fmt.Errorf("%s: %w", from.path, err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// writeAt writes p at off. The caller holds the volume's lock exclusively.
func (l *link) writeAt(p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > l.size {
		return fmt.Errorf("%s: write of [%d, %d) beyond %d bytes", l.path, off, off+int64(len(p)), l.size)
	}
	f, err := l.open()
	if err != nil {
		return err
	}
	if l.parent == nil {
		_, err := f.WriteAt(p, off)
		return err
	}
	for len(p) > 0 {
		b := off / blockSize
		start, end := b*blockSize, min((b+1)*blockSize, l.size)
		n := min(int64(len(p)), end-off)
		if l.have.get(b) || n == end-start {
			_, err = f.WriteAt(p[:n], off)
		} else { // the rest of the block comes from below
			block := make([]byte, end-start)
			if err = l.parent.readAt(block, start); err == nil {
				copy(block[off-start:], p[:n])
				_, err = f.WriteAt(block, start)
			}
		}
		if err != nil {
			return err
		}
		l.have.set(b)
		p, off = p[n:], off+n
	}
	return nil
}

// merge writes what the delta l holds into its parent, which then shows what l showed. Volume lock held exclusively.
func (l *link) merge() error {
	f, err := l.open()
	if err != nil {
		return err
	}
	buf := make([]byte, blockSize)
	for _, e := range l.have.extents(extent.Extent{Len: l.size}) {
		for off := e.Off; off < e.End(); off += blockSize {
			p := buf[:min(blockSize, e.End()-off)]
			if _, err := io.ReadFull(io.NewSectionReader(f, off, int64(len(p))), p); err != nil {
				return err
			}
			if err := l.parent.writeAt(p, off); err != nil {
				return err
			}
		}
	}
	return nil
}

// allocated returns where the composed disk may differ from zeros. Volume lock held, shared at least.
func (l *link) allocated() (extent.Set, error) { return l.allocatedIn(extent.Extent{Len: l.size}) }

// allocatedIn is the same within a part of the disk, in time that does not grow with the rest.
func (l *link) allocatedIn(e extent.Extent) (extent.Set, error) {
	var set extent.Set
	for ; l.parent != nil; l = l.parent {
		set = set.Union(l.have.extents(e))
	}
	f, err := l.open()
	if err != nil {
		return nil, err
	}
	data, err := dataExtents(f, extent.Extent{Off: e.Off, Len: min(e.End(), l.size) - e.Off})
	if err != nil {
		return nil, err
	}
	return set.Union(data), nil
}

// resize makes a base disk larger.
func (l *link) resize(size int64) error {
	l.vol.mu.Lock()
	defer l.vol.mu.Unlock()
	if size < l.size || l.parent != nil {
		return fmt.Errorf("%s: cannot go from %d to %d bytes", l.path, l.size, size)
	}
	f, err := l.open()
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	l.size = size
	if l.vol.track != nil {
		l.vol.track.resize(size)
	}
	return nil
}

// copyContent writes the composed content of src into the base disk dst, keeping holes.
func copyContent(dst, src *link) error {
	src.vol.mu.RLock()
	defer src.vol.mu.RUnlock()
	set, err := src.allocated()
	if err != nil {
		return err
	}
	dst.vol.mu.Lock()
	defer dst.vol.mu.Unlock()
	buf := make([]byte, 1<<20)
	for _, e := range set {
		for off := e.Off; off < e.End(); off += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), e.End()-off)]
			if err := src.readAt(p, off); err != nil {
				return err
			}
			if err := dst.writeAt(p, off); err != nil {
				return err
			}
		}
	}
	return nil
}

const ( // lseek(2)
	seekData = 3
	seekHole = 4
)

// dataExtents asks the file system which parts of a sparse file hold data.
func dataExtents(f *os.File, within extent.Extent) (extent.Set, error) {
	var found []extent.Extent
	for off := within.Off; off < within.End(); {
		d, err := syscall.Seek(int(f.Fd()), off, seekData)
		if errors.Is(err, syscall.ENXIO) {
			break
		}
		if err != nil {
			return nil, &fs.PathError{Op: "seek", Path: f.Name(), Err: err}
		}
		if d >= within.End() {
			break
		}
		h, err := syscall.Seek(int(f.Fd()), d, seekHole)
		if err != nil {
			return nil, &fs.PathError{Op: "seek", Path: f.Name(), Err: err}
		}
		found = append(found, extent.Extent{Off: d, Len: min(h, within.End()) - d})
		off = h
	}
	return extent.Of(found...), nil
}

// adopt registers a flat disk whose descriptor and content already lie on the datastore.
func (s *store) adopt(p string) (*link, error) {
	desc, err := s.local(p)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(desc); err != nil {
		return nil, err
	}
	flat, err := s.local(flatName(p))
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(flat)
	if err != nil {
		return nil, err
	}
	return s.base(p, st.Size(), true)
}
