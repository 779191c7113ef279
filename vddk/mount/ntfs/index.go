package ntfs

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// An index is a B-tree of entries: the root is a resident attribute, further nodes are blocks of a stream. Only what
// the tree leads to is read: blocks it does not reach hold entries of files removed long ago.
//
//	root:   type(4) collation(4) block size(4) clusters(1) 0(3)  | node
//	block:  "INDX" fixup(4) LSN(8) VCN(8)                        | node
//	node:   first entry(4) end(4) allocated(4) flags(1; 1: has children) 0(3), offsets from the node's start
//	entry:  data(8) length(2) key length(2) flags(2; 1: child, 2: last) 0(2) key ... child VCN(8)
type index struct {
	n      *node
	root   []byte // node of the root
	blocks guestfs.File
	size   int64 // bytes of a block
	unit   int64 // bytes that VCNs of blocks count
}

// namespaceDOS is that of short names, which another entry gives in full.
const namespaceDOS = 2

const (
	entryChild = 1
	entryLast  = 2
	maxDepth   = 20
	// maxBlocks is a directory of some 300 million names.
	maxBlocks = 1 << 23
)

func (n *node) index(name string) (*index, error) {
	a, err := n.first(typeIndexRoot, name)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, guestfs.Damaged("record %d has no index %q", number(n.ref), name)
	}
	if !a.resident || len(a.value) < 32 {
		return nil, guestfs.Damaged("index root of %d bytes", len(a.value))
	}
	x := &index{n: n, root: a.value[16:], size: int64(le.Uint32(a.value[8:])), unit: n.d.cluster}
	if x.size < 512 || x.size > 64<<10 || x.size&(x.size-1) != 0 {
		return nil, guestfs.Damaged("index blocks of %d bytes", x.size)
	}
	if x.unit > x.size {
		x.unit = 512
	}
	pieces, err := n.pieces(typeIndexAlloc, name)
	if err != nil {
		return nil, err
	}
	if len(pieces) > 0 {
		r, err := parseRuns(pieces)
		if err != nil {
			return nil, err
		}
		size := min(pieces[0].size, r.end()*n.d.cluster)
		if size/x.size > maxBlocks {
			return nil, fmt.Errorf("directory of %d bytes: %w", size, guestfs.ErrTooLarge)
		}
		x.blocks = metaFile{n.d, r, size}
	}
	return x, nil
}

// metaFile is a stream read through the cache for metadata.
type metaFile struct {
	d    *driver
	runs runs
	size int64
}

func (f metaFile) Size() int64                  { return f.size }
func (f metaFile) Runs() ([]guestfs.Run, error) { return nil, errors.ErrUnsupported }
func (f metaFile) ReadAt(p []byte, off int64) (int, error) {
	return guestfs.ReadAt(p, off, f.size, func(p []byte, off int64) error {
		_, err := f.runs.read(p, off, f.d)
		return err
	})
}

// block reads the node of a block.
func (x *index) block(vcn int64) ([]byte, error) {
	if x.blocks == nil || vcn < 0 || vcn > x.blocks.Size()/x.unit {
		return nil, guestfs.Damaged("index leads to block %d", vcn)
	}
	b := make([]byte, x.size)
	if _, err := x.blocks.ReadAt(b, vcn*x.unit); err != nil {
		return nil, fmt.Errorf("index block %d: %w", vcn, err)
	}
	if err := fixup(b, "INDX"); err != nil {
		return nil, fmt.Errorf("index block %d: %w", vcn, err)
	}
	if says := int64(le.Uint64(b[16:])); says != vcn {
		return nil, guestfs.Damaged("index block %d says that it is %d", vcn, says)
	}
	return b[24:], nil
}

// indexEntry is an entry of a node. data is 8 bytes (of a directory: a reference), whole is all of it.
type indexEntry struct {
	whole, key []byte
	child      int64 // VCN, -1: none
	end        int   // offset behind it in the node
}

// entries calls fn with the entries of a node, the last one (with no key) included, until it returns false.
func entries(node []byte, fn func(indexEntry) bool) error {
	if len(node) < 16 {
		return guestfs.Damaged("index node of %d bytes", len(node))
	}
	p, end := int(le.Uint32(node)), int(le.Uint32(node[4:]))
	if end > len(node) || p < 16 {
		return guestfs.Damaged("index node from %d to %d of %d", p, end, len(node))
	}
	for p+16 <= end {
		n, key, flags := int(le.Uint16(node[p+8:])), int(le.Uint16(node[p+10:])), le.Uint16(node[p+12:])
		if n < 16 || p+n > end || flags&entryChild != 0 && n < 24 {
			return guestfs.Damaged("index entry of %d bytes", n)
		}
		e := indexEntry{whole: node[p : p+n], child: -1, end: p + n}
		if flags&entryChild != 0 {
			e.child = int64(le.Uint64(node[p+n-8:]))
		}
		if flags&entryLast == 0 {
			if 16+key > n {
				return guestfs.Damaged("index key of %d bytes", key)
			}
			e.key = node[p+16 : p+16+key]
		}
		if !fn(e) || flags&entryLast != 0 {
			return nil
		}
		p += n
	}
	return guestfs.Damaged("index node without end")
}

// tree is the VCNs of all blocks of the index, parents before children. Leaves are not read for it: their parents
// name them. What is damaged is left out and told in the error.
func (x *index) tree() ([]int64, error) {
	var out []int64
	var bad error
	seen := map[int64]bool{}
	var below func(node []byte, depth int)
	below = func(node []byte, depth int) {
		if len(node) < 16 || node[12]&1 == 0 {
			return
		}
		var children []int64
		err := entries(node, func(e indexEntry) bool {
			if e.child >= 0 {
				if seen[e.child] || depth > maxDepth {
					bad = cmpErr(bad, guestfs.Damaged("index leads to block %d twice", e.child))
					return true
				}
				seen[e.child] = true
				children = append(children, e.child)
			}
			return true
		})
		bad = cmpErr(bad, err)
		out = append(out, children...)
		// All leaves are at one depth: when the first child is a leaf, so are the others.
		for k, c := range children {
			b, err := x.block(c)
			if err != nil {
				bad = cmpErr(bad, err)
				continue
			}
			if b[12]&1 == 0 && k == 0 {
				return
			}
			below(b, depth+1)
		}
	}
	below(x.root, 0)
	return out, bad
}

// cmpErr is the first error.
func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// each calls fn with the entries that have a key, from place on; a place is a node (0 the root, then as in tree) in
// the upper bits and an offset in it in the lower 16. Damage does not keep the rest from being given.
func (x *index) each(place uint64, fn func(e indexEntry, next uint64) bool) error {
	blocks, bad := x.tree()
	nodes := len(blocks) + 1
	for k := place >> 16; k < uint64(nodes); k++ {
		node, from := x.root, 0
		if k > 0 {
			var err error
			if node, err = x.block(blocks[k-1]); err != nil {
				bad = cmpErr(bad, err)
				continue
			}
		}
		if k == place>>16 {
			from = int(place & 0xffff)
		}
		on := true
		err := entries(node, func(e indexEntry) bool {
			if e.key == nil || e.end <= from {
				return true
			}
			// An entry may end at 64 KiB, which does not fit: what follows it is the next node.
			next := k<<16 | uint64(e.end)
			if e.end > 0xffff {
				next = (k + 1) << 16
			}
			on = fn(e, next)
			return on
		})
		bad = cmpErr(bad, err)
		if !on {
			return nil
		}
	}
	return bad
}

// ReadDir gives the names of a directory in the order of its index's nodes. The key of an entry is a $FILE_NAME:
//
//	parent(8) times(32) allocated(8) size(8) flags(4) reparse tag or EA size(4) characters(1) namespace(1) name
func (d *driver) ReadDir(dir guestfs.ID, after guestfs.Cursor, yield func(guestfs.Entry) bool) error {
	n, err := d.file(dir)
	if err != nil {
		return err
	}
	if !n.dir {
		return guestfs.ErrNotDir
	}
	x, err := n.index("$I30")
	if err != nil {
		return err
	}
	var bad error
	err = x.each(uint64(after), func(e indexEntry, next uint64) bool {
		if len(e.key) < 66 || 66+2*int(e.key[64]) > len(e.key) || e.key[64] == 0 {
			bad = cmpErr(bad, guestfs.Damaged("name of %d bytes in a directory", len(e.key)))
			return true
		}
		ref := le.Uint64(e.whole)
		if e.key[65] == namespaceDOS || number(ref) < firstUser {
			return true
		}
		out := guestfs.Entry{
			Name: name(e.key[66 : 66+2*int(e.key[64])]), ID: guestfs.ID{File: ref}, Next: guestfs.Cursor(next),
		}
		const directory = 0x10000000
		switch flags := le.Uint32(e.key[56:]); {
		case flags&(attrReparse|attrSystem) != 0: // what it is, only the file tells
		case flags&directory != 0:
			out.Type = guestfs.Directory
		default:
			out.Type = guestfs.Regular
		}
		return yield(out)
	})
	return cmpErr(err, bad)
}

// loadSecurity reads the index of $Secure: from security ids to descriptors in its stream $SDS.
func (d *driver) loadSecurity() {
	d.security = map[uint32]extent.Extent{}
	n, err := d.node(recordSecure)
	if err != nil {
		return
	}
	x, err := n.index("$SII")
	if err != nil {
		return
	}
	f, err := n.stream(typeData, "$SDS")
	if err != nil {
		return
	}
	d.sds = f
	const maxDescriptors = 1 << 20
	// data offset(2) data size(2) 0(4) length(2) ... key: id(4), data: hash(4) id(4) offset(8) size(4)
	_ = x.each(0, func(e indexEntry, _ uint64) bool {
		at := int(le.Uint16(e.whole))
		if len(e.key) < 4 || at+20 > len(e.whole) {
			return true
		}
		size := int64(le.Uint32(e.whole[at+16:]))
		if off := le.Uint64(e.whole[at+8:]); size > 20 && size <= 128<<10 && off < 1<<40 {
			d.security[le.Uint32(e.key)] = extent.Extent{Off: int64(off) + 20, Len: size - 20}
		}
		return len(d.security) < maxDescriptors
	})
}

// descriptor is the security descriptor with an id; nil when there is none.
func (d *driver) descriptor(id uint32) ([]byte, error) {
	d.secured.Do(d.loadSecurity)
	e, ok := d.security[id]
	if !ok {
		return nil, nil
	}
	b := make([]byte, e.Len)
	if _, err := d.sds.ReadAt(b, e.Off); err != nil {
		return nil, fmt.Errorf("security descriptor %d: %w", id, err)
	}
	return slices.Clip(b), nil
}
