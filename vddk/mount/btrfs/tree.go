package btrfs

import (
	"container/list"
	"errors"
	"fmt"
	"math"
	"sort"
	"sync"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Numbers of trees and of what is in them.
const (
	treeTop    = 5
	treeSums   = 7
	firstInode = 256
	lastInode  = math.MaxUint64 - 255
	sumsObject = math.MaxUint64 - 9 // -10

	typeInode   = 1
	typeXattr   = 24
	typeDirItem = 96 // by index: in the order of creation
	typeExtent  = 108
	typeSum     = 128
	typeRoot    = 132
	typeRootRef = 156
)

// key orders items: object(8) type(1) offset(8).
type key struct {
	object uint64
	typ    byte
	off    uint64
}

const keyLen = 17

// lastKey is behind all others.
var lastKey = key{math.MaxUint64, math.MaxUint8, math.MaxUint64}

func parseKey(b []byte) key { return key{le.Uint64(b), b[8], le.Uint64(b[9:])} }

func (k key) less(o key) bool {
	if k.object != o.object {
		return k.object < o.object
	}
	if k.typ != o.typ {
		return k.typ < o.typ
	}
	return k.off < o.off
}

// tree is where a tree's root block lies.
type tree struct {
	at, gen uint64
	level   byte
}

// Tree block:
//
//	0    32    48     56     64         80    88     96     100    101
//	+----+-----+------+------+----------+-----+------+------+------+------------------------------------+
//	|sum |fsid |place |flags |chunk uuid|gen. |tree  |items |level | leaf: key(17) offset(4) size(4) ...|
//	|    |     |      |      |          |     |      |      |      | node: key(17) block(8) gen.(8)  ...|
//	+----+-----+------+------+----------+-----+------+------+------+------------------------------------+
const (
	blockHead = 101
	itemLen   = 25
	childLen  = 33
	maxLevel  = 8
)

// block reads a tree block: right sum, right place, right age.
func (d *driver) block(t tree) ([]byte, error) {
	if b := d.blocks.get(t.at); b != nil && le.Uint64(b[80:]) == t.gen {
		return b, nil
	}
	b := make([]byte, d.node)
	err := d.verified(b, t.at, func(b []byte) bool {
		return le.Uint64(b[48:]) == t.at && le.Uint64(b[80:]) == t.gen && d.sumOK(b[:32], b[32:])
	})
	if err != nil {
		return nil, fmt.Errorf("tree block: %w", err)
	}
	if b[100] != t.level {
		return nil, guestfs.Damaged("tree block %d of level %d, not %d", t.at, b[100], t.level)
	}
	d.blocks.put(t.at, b)
	return b, nil
}

var errStop = errors.New("stop")

// scan calls fn with the items from key lo to hi in order. fn may return errStop to end. Items live as long as the
// call.
func (d *driver) scan(t tree, lo, hi key, fn func(key, []byte) error) error {
	return d.scanLeaves(t, lo, hi, func(k key, b []byte, _ uint64) error { return fn(k, b) })
}

// scanLeaves is scan with the logical address of the leaf that holds the item.
func (d *driver) scanLeaves(t tree, lo, hi key, fn func(key, []byte, uint64) error) error {
	err := d.walk(t, lo, hi, fn)
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

func (d *driver) walk(t tree, lo, hi key, fn func(key, []byte, uint64) error) error {
	if t.level > maxLevel {
		return guestfs.Damaged("tree of %d levels", t.level)
	}
	b, err := d.block(t)
	if err != nil {
		return err
	}
	n := int(le.Uint32(b[96:]))
	if t.level == 0 {
		if n > (len(b)-blockHead)/itemLen {
			return guestfs.Damaged("leaf of %d items", n)
		}
		for k := sort.Search(n, func(k int) bool { return !parseKey(b[blockHead+itemLen*k:]).less(lo) }); k < n; k++ {
			item := b[blockHead+itemLen*k:]
			at := parseKey(item)
			if hi.less(at) {
				return errStop
			}
			off, size := int64(le.Uint32(item[17:])), int64(le.Uint32(item[21:]))
			if blockHead+off+size > int64(len(b)) {
				return guestfs.Damaged("item of %d bytes at %d", size, off)
			}
			if err := fn(at, b[blockHead+off:blockHead+off+size], t.at); err != nil {
				return err
			}
		}
		return nil
	}
	if n > (len(b)-blockHead)/childLen {
		return guestfs.Damaged("node of %d children", n)
	}
	k := sort.Search(n, func(k int) bool { return lo.less(parseKey(b[blockHead+childLen*k:])) })
	for k = max(k-1, 0); k < n; k++ {
		child := b[blockHead+childLen*k:]
		if hi.less(parseKey(child)) {
			return errStop
		}
		// The level falls with each step, so that no loop in the blocks is followed for long.
		if err := d.walk(tree{le.Uint64(child[17:]), le.Uint64(child[25:]), t.level - 1}, lo, hi, fn); err != nil {
			return err
		}
	}
	return nil
}

// trees is the tree of trees, and those already found in it.
type trees struct {
	root  tree
	mu    sync.Mutex
	known map[uint64]tree
}

// maxTrees bounds those kept: snapshots may be many.
const maxTrees = 10_000

// tree finds a tree by its number. Its item: inode(160) generation(8) directory(8) block(8) ... level at 238.
func (d *driver) tree(id uint64) (tree, error) {
	d.trees.mu.Lock()
	t, ok := d.trees.known[id]
	d.trees.mu.Unlock()
	if ok {
		return t, nil
	}
	found := false
	err := d.scan(d.trees.root, key{id, typeRoot, 0}, key{id, typeRoot, math.MaxUint64}, func(_ key, b []byte) error {
		if len(b) < 239 {
			return guestfs.Damaged("tree item of %d bytes", len(b))
		}
		t, found = tree{at: le.Uint64(b[176:]), gen: le.Uint64(b[160:]), level: b[238]}, true
		return nil
	})
	if err == nil && !found {
		err = guestfs.Damaged("tree %d does not exist", id)
	}
	if err != nil {
		return tree{}, err
	}
	d.trees.mu.Lock()
	defer d.trees.mu.Unlock()
	if len(d.trees.known) < maxTrees {
		d.trees.known[id] = t
	}
	return t, nil
}

// blocks keeps verified tree blocks.
type blocks struct {
	mu  sync.Mutex
	use *list.List // []byte, most recently used first
	at  map[uint64]*list.Element
}

// maxBlocks of up to 64 KiB are 24 MiB.
const maxBlocks = 384

func newBlocks() *blocks { return &blocks{use: list.New(), at: map[uint64]*list.Element{}} }

func (c *blocks) get(at uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.at[at]
	if e == nil {
		return nil
	}
	c.use.MoveToFront(e)
	return e.Value.([]byte)
}

func (c *blocks) put(at uint64, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.at[at]; e != nil {
		e.Value = b
		return
	}
	c.at[at] = c.use.PushFront(b)
	if c.use.Len() > maxBlocks {
		old := c.use.Remove(c.use.Back()).([]byte)
		delete(c.at, le.Uint64(old[48:]))
	}
}
