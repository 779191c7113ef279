package xfs

import (
	"fmt"
	"hash/crc32"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// The log is a ring of basic blocks (bb, 512 bytes) which records are written into, round after round. Every bb
// begins with the number of its round (the cycle), in a header behind the magic; what was there in the data is
// kept in the header.
//
//	header: 0     4     8       12     16   24    32   36    40   44              300  304   320   324
//	+-------+-----+-----+-------+------+----+-----+----+-----+----+---------------+----+-----+-----+
//	|FEEDBABE cycle|version|bytes| LSN  |tail LSN | crc| prev| ops| first words 64|fmt |uuid |size |
//	+-------+-----+-----+-------+------+----+-----+----+-----+----+---------------+----+-----+-----+
//
// Records of more than 32 KiB have further headers: cycle(4) and the first words of the next 64 bb each. An LSN is
// cycle(4) and bb(4). The tail LSN of the last record says where replaying must begin.
//
// A record holds operations, big-endian, which belong to transactions by number and may be split:
//
//	transaction(4) bytes(4) client(1) flags(1) 0(2), then the bytes
const (
	logMagic = 0xfeedbabe
	bb       = 512

	maxRecord = 256 << 10 // bytes of a record: the largest log buffer
	inFlight  = 8         // records that may have been written out of order: log buffers in memory

	opStart     = 0x1
	opCommit    = 0x2
	opContinue  = 0x4 // the region continues in the next operation
	opContinued = 0x8 // it continues one
	opUnmount   = 0x20

	clientTransaction = 0x69
)

// ring is the log read as a ring; positions are bb from its start.
type ring struct {
	d     *driver
	start int64 // on the volume
	n     int64 // bb
}

func (r *ring) read(p []byte, pos int64) error {
	for len(p) > 0 {
		pos %= r.n
		k := min(int64(len(p)), (r.n-pos)*bb)
		if err := r.d.src.ReadData(p[:k], r.start+pos*bb); err != nil {
			return err
		}
		p, pos = p[k:], pos+k/bb
	}
	return nil
}

// cycle is the round in which a bb was written last.
func (r *ring) cycle(pos int64) (uint32, error) {
	b := make([]byte, bb)
	if err := r.read(b, pos); err != nil {
		return 0, err
	}
	return cycleOf(b), nil
}

func cycleOf(b []byte) uint32 {
	if be.Uint32(b) == logMagic {
		return be.Uint32(b[4:])
	}
	return be.Uint32(b)
}

// record is a record's header.
type record struct {
	pos   int64 // bb
	head  int64 // bb of its headers
	size  int64 // bytes of its data
	lsn   uint64
	tail  uint64
	ops   uint32
	crc   uint32
	bytes []byte // the headers
}

func (r record) end() int64 { return r.pos + r.head + (r.size+bb-1)/bb }

// header reads the record header at pos; ok is false when there is none.
func (r *ring) header(pos int64) (rec record, ok bool, err error) {
	b := make([]byte, bb)
	if err := r.read(b, pos); err != nil {
		return rec, false, err
	}
	if be.Uint32(b) != logMagic {
		return rec, false, nil
	}
	rec = record{
		pos: pos % r.n, head: 1, size: int64(be.Uint32(b[12:])), lsn: be.Uint64(b[16:]), tail: be.Uint64(b[24:]),
		crc: le.Uint32(b[32:]), ops: be.Uint32(b[40:]),
	}
	version, size, id := be.Uint32(b[8:]), int64(be.Uint32(b[320:])), string(b[304:320])
	if version&2 != 0 && size > 32<<10 {
		rec.head = (size + 32<<10 - 1) / (32 << 10)
	}
	switch {
	case version == 0 || version&^3 != 0,
		id != r.d.rawUUID[0] && id != r.d.rawUUID[1],
		rec.lsn&(1<<32-1) != uint64(rec.pos), uint32(rec.lsn>>32) != be.Uint32(b[4:]),
		rec.size > maxRecord, rec.head > maxRecord/(32<<10), rec.head+rec.size/bb >= r.n:
		return rec, false, nil
	}
	rec.bytes = make([]byte, rec.head*bb)
	return rec, true, r.read(rec.bytes, pos)
}

// data reads a record's data as it was before the cycles were written over it, and checks its checksum.
func (r *ring) data(rec record) (b []byte, whole bool, err error) {
	b = make([]byte, (rec.size+bb-1)/bb*bb)
	if err := r.read(b, rec.pos+rec.head); err != nil {
		return nil, false, err
	}
	whole = rec.crc == 0 || rec.sum(b, 328) == rec.crc || rec.sum(b, 324) == rec.crc
	for k := int64(0); k*bb < int64(len(b)); k++ {
		words := rec.bytes[44:300] // of the first header
		if k >= 64 {
			if k/64 >= rec.head {
				return nil, false, guestfs.Damaged("log record at %d has too few headers", rec.pos)
			}
			words = rec.bytes[k/64*bb+4 : k/64*bb+4+256]
		}
		copy(b[k*bb:k*bb+4], words[k%64*4:])
	}
	return b[:rec.size], whole, nil
}

// sum is the checksum of a record with data b: CRC-32C of the first header without its checksum, of the further
// ones that the data needs, and of the data. The first header ends after 328 bytes, on 32-bit guests after 324.
func (rec record) sum(b []byte, header int) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	h := append([]byte{}, rec.bytes[:header]...)
	clear(h[32:36])
	sum := crc32.Update(0, table, h)
	for k := int64(1); k < (rec.size+32<<10-1)/(32<<10) && k < rec.head; k++ {
		sum = crc32.Update(sum, table, rec.bytes[k*bb:k*bb+260])
	}
	return crc32.Update(sum, table, b[:rec.size])
}

// head finds the bb after the last one written: where the cycle falls by one, or where the log was never written.
// It is a position in [0, n]; n means that the last round ended exactly with the ring.
func (r *ring) head() (int64, error) {
	first, err := r.cycle(0)
	if err != nil {
		return 0, err
	}
	last, err := r.cycle(r.n - 1)
	if err != nil {
		return 0, err
	}
	switch {
	case first == 0:
		return 0, nil // never used
	case first != last && last != first-1 && last != 0:
		return 0, guestfs.Damaged("cycles %d and %d at the ends of the log", first, last)
	}
	lo, hi := int64(0), r.n // the cycle is first at lo, and not at hi
	if first != last {
		hi = r.n - 1
	}
	for hi-lo > 1 && first != last {
		mid := (lo + hi) / 2
		c, err := r.cycle(mid)
		if err != nil {
			return 0, err
		}
		if c == first {
			lo = mid
		} else {
			hi = mid
		}
	}
	// Log buffers may have reached the disk out of order: the first bb of an older round among the last ones is
	// the real end.
	window := min(hi, inFlight*(maxRecord/bb+maxRecord/(32<<10)))
	b := make([]byte, window*bb)
	if err := r.read(b, hi-window); err != nil {
		return 0, err
	}
	for k := range window {
		if cycleOf(b[k*bb:]) != first {
			return hi - window + k, nil
		}
	}
	return hi, nil
}

// last finds the last records before head, in order, at most inFlight of them.
func (r *ring) last(head int64) ([]record, error) {
	const step = 512 // bb looked at in one read
	var found []record
	limit := max(head-r.n, head-2*inFlight*(maxRecord/bb))
	end := head
	for at := head; at > limit && len(found) < inFlight; {
		n := min(step, at-limit)
		at -= n
		b := make([]byte, n*bb)
		if err := r.read(b, at+r.n); err != nil {
			return nil, err
		}
		for k := n - 1; k >= 0 && len(found) < inFlight; k-- {
			if be.Uint32(b[k*bb:]) != logMagic {
				continue
			}
			rec, ok, err := r.header(at + k + r.n)
			if err != nil {
				return nil, err
			}
			if ok && at+k+rec.end()-rec.pos <= end {
				found = append([]record{rec}, found...)
				end = at + k
			}
		}
	}
	return found, nil
}

// active finds what must be replayed: the record to begin with and the last whole one. ok is false when the log is
// clean.
func (r *ring) active() (tail uint64, last record, ok bool, err error) {
	head, err := r.head()
	if err != nil {
		return 0, last, false, err
	}
	recs, err := r.last(head)
	if err != nil {
		return 0, last, false, err
	}
	if len(recs) == 0 {
		if head == 0 {
			return 0, last, false, nil
		}
		return 0, last, false, guestfs.Damaged("no record before the end of the log at %d", head)
	}
	var data []byte
	for _, rec := range recs {
		b, whole, err := r.data(rec)
		if err != nil {
			return 0, last, false, err
		}
		if !whole {
			break // torn: it and what follows never happened
		}
		last, data = rec, b
	}
	if data == nil {
		return 0, last, false, guestfs.Damaged("the last %d records of the log have wrong checksums", len(recs))
	}
	if last.ops == 1 && len(data) >= 12 && data[9]&opUnmount != 0 {
		return 0, last, false, nil
	}
	if last.tail > last.lsn {
		return 0, last, false, guestfs.Damaged("the log's tail lies behind its head")
	}
	return last.tail, last, true, nil
}

// each calls fn with the data of the records from LSN tail to the one at last.
func (r *ring) each(tail uint64, last record, fn func(record, []byte) error) error {
	pos, done := int64(tail&(1<<32-1)), int64(0)
	if pos >= r.n {
		return guestfs.Damaged("the log's tail is bb %d of %d", pos, r.n)
	}
	for {
		rec, ok, err := r.header(pos)
		if err != nil {
			return err
		}
		if !ok || rec.lsn < tail || rec.lsn > last.lsn {
			return guestfs.Damaged("no record at bb %d of the log", pos)
		}
		b, whole, err := r.data(rec)
		if err != nil {
			return err
		}
		if !whole {
			return guestfs.Damaged("record at bb %d of the log has a wrong checksum", pos)
		}
		if err := fn(rec, b); err != nil {
			return err
		}
		if rec.pos == last.pos {
			return nil
		}
		done += rec.end() - rec.pos
		if done > r.n {
			return guestfs.Damaged("the log runs in a circle")
		}
		pos = rec.end() % r.n
	}
}

// transaction is a transaction being read: its items are lists of regions, the first of which says how many.
type transaction struct {
	header []byte // 16 bytes, TRAN first
	items  [][][]byte
	size   int
}

// maxOpen bounds the bytes of transactions not yet committed; those of real logs are below a megabyte each.
const maxOpen = 64 << 20

// assembly puts transactions together from operations.
type assembly struct {
	open   map[uint32]*transaction
	size   int
	commit func(*transaction) error
}

func (a *assembly) record(rec record, b []byte) error {
	for ops := rec.ops; ops > 0 && len(b) >= 12; ops-- {
		id, n, client, flags := be.Uint32(b), int64(be.Uint32(b[4:])), b[8], b[9]
		b = b[12:]
		if n > int64(len(b)) {
			return guestfs.Damaged("operation of %d bytes in a log record", n)
		}
		region := b[:n]
		b = b[n:]
		if client != clientTransaction {
			continue
		}
		if err := a.operation(id, flags, region); err != nil {
			return err
		}
	}
	return nil
}

func (a *assembly) operation(id uint32, flags byte, region []byte) error {
	t := a.open[id]
	switch {
	case flags&opStart != 0:
		a.drop(id)
		a.open[id] = &transaction{}
		return nil
	case t == nil:
		return nil // began before the tail: all of it is on the disk
	case flags&opUnmount != 0:
		return nil
	case flags&opCommit != 0:
		a.drop(id)
		return a.commit(t)
	}
	if a.size += len(region); a.size > maxOpen || len(a.open) > 1<<16 {
		return fmt.Errorf("more than %d MiB of open transactions: %w", maxOpen>>20, guestfs.ErrTooLarge)
	}
	t.size += len(region)
	return t.add(region, flags&opContinued != 0)
}

func (a *assembly) drop(id uint32) {
	if t := a.open[id]; t != nil {
		a.size -= t.size
		delete(a.open, id)
	}
}

// add appends a region to the last item, or a continuation to the last region.
func (t *transaction) add(region []byte, continued bool) error {
	const header = 16
	if len(region) == 0 {
		return nil
	}
	region = append([]byte{}, region...)
	if len(t.header) < header {
		// The transaction's own header is a region too, and may be split like any other.
		if t.header = append(t.header, region...); len(t.header) > header || le.Uint32(append(t.header, 0, 0, 0, 0)) != 0x5452414e {
			return guestfs.Damaged("transaction in the log without header")
		}
		return nil
	}
	k := len(t.items) - 1
	switch {
	case continued && k >= 0:
		last := &t.items[k][len(t.items[k])-1]
		*last = append(*last, region...)
	case continued:
		return guestfs.Damaged("a region in the log continues nothing")
	case k >= 0 && len(t.items[k]) < regions(t.items[k]):
		t.items[k] = append(t.items[k], region)
	default:
		t.items = append(t.items, [][]byte{region})
	}
	return nil
}

// regions is how many regions an item claims: every kind begins with type(2) count(2).
func regions(item [][]byte) int {
	if len(item[0]) < 4 {
		return 1
	}
	return int(le.Uint16(item[0][2:]))
}
