package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Header starts every frame:
//
//	+-------------------+----------+------------------+---------+
//	| u32 0xA100DA7A    | u32 type | u32 payload size | u32 id  |
//	+-------------------+----------+------------------+---------+
//	| payload | extra, as the type says (not counted in size)  |
//	+---------+-------------------------------------------------+
//
// The id names an operation: a counter of the client from 0; replies repeat it.
type Header struct {
	Type Type
	Size uint32 // of the payload, in bytes
	ID   uint32
}

// Type tells frames apart.
type Type uint32

// Frames known. Others of the family (sync, setting DDB entries, switching hosts) have no public description.
const (
	Error          Type = 1
	OpenSession    Type = 2
	CloseSession   Type = 3
	OpenFile       Type = 4
	CloseFile      Type = 5
	IO             Type = 7
	SetSockOpts    Type = 9
	DDBGet         Type = 11
	QueryAllocated Type = 13
	SetResPool     Type = 22
)

func (t Type) String() string {
	switch t {
	case Error:
		return "ERROR"
	case OpenSession:
		return "OPEN_SESSION"
	case CloseSession:
		return "CLOSE_SESSION"
	case OpenFile:
		return "OPEN_FILE"
	case CloseFile:
		return "CLOSE_FILE"
	case IO:
		return "IO"
	case SetSockOpts:
		return "SET_SOCK_OPTS"
	case DDBGet:
		return "DDB_GET"
	case QueryAllocated:
		return "QUERY_ALLOCATED_BLOCKS"
	case SetResPool:
		return "SET_RES_POOL"
	}
	return fmt.Sprintf("frame type %d", uint32(t))
}

// Sizes in bytes, and limits a parser enforces before it believes a number.
const (
	HeaderSize      = 16
	IOSize          = 44
	ErrorSize       = 16
	OpenSessionSize = 16
	OpenFileSize    = 60
	DDBSize         = 16
	QuerySize       = 48
	SockOptsSize    = 12
	MaxPayload      = 4096     // the largest payload known has 60; room for versions to come
	MaxText         = 64 << 10 // text of an ERROR
	MaxPath         = 4096     // datastore path
	MaxDDB          = 4096     // key or value of a disk's database
	MaxQueryChunks  = 512 << 10
	MaxIO           = 64 << 20 // length of one operation, ours are far smaller
	magic           = 0xA100DA7A
	fileTypeAt      = 16
	fileFlagsAt     = 20
	fileCapacityAt  = 28
	queryCountAt    = 32
	DefaultBuffer   = 64 << 10 // a session opened without sizes
	NFCDisk         = 2        // file type of disks
	NFCDeltaDisk    = 3
	NFCRDM          = 6
	flagReadOnly    = 0x04
	OpenReadOnly    = 0x1e // open parents, lock, read only
	OpenReadWrite   = 0x1a
	CodePermission  = 11 // ERROR code: the ticket does not allow it
	CodeMemory      = 5  // ERROR code: the NFC server's memory is used up
)

// ErrFrame is a violation of framing: the stream cannot be trusted any more.
var ErrFrame = errors.New("malformed NFC frame")

var le = binary.LittleEndian

// AppendHeader appends h to b.
func AppendHeader(b []byte, h Header) []byte {
	b = le.AppendUint32(b, magic)
	b = le.AppendUint32(b, uint32(h.Type))
	b = le.AppendUint32(b, h.Size)
	return le.AppendUint32(b, h.ID)
}

// ParseHeader reads a header and checks magic and payload size.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("%w: header of %d bytes", ErrFrame, len(b))
	}
	if m := le.Uint32(b); m != magic {
		return Header{}, fmt.Errorf("%w: magic %#08x", ErrFrame, m)
	}
	h := Header{Type(le.Uint32(b[4:])), le.Uint32(b[8:]), le.Uint32(b[12:])}
	if h.Size > MaxPayload {
		return Header{}, fmt.Errorf("%w: %s with a payload of %d bytes", ErrFrame, h.Type, h.Size)
	}
	return h, nil
}

// need checks that a payload of type t has at least n bytes.
func need(t Type, b []byte, n int) error {
	if len(b) < n {
		return fmt.Errorf("%w: %s with a payload of %d bytes, %d needed", ErrFrame, t, len(b), n)
	}
	return nil
}

// IOFrame is the payload of an IO, of a request as of a reply:
//
//	 0 u64 handle (request) or status, 0 = good (reply)
//	 8 u32 1 = read, 0 = write
//	12 u32 compression of the data that follow, in a read request: wanted
//	16 u64 offset of the whole operation on the disk, bytes
//	24 u32 length of the whole operation, bytes
//	28 u32 offset of this fragment inside the operation, bytes
//	32 u32 length of this fragment before compression
//	36 u32 length of the data that follow
//	40 u32 0
//
// In a read request the lengths are all that of the operation and nothing follows.
type IOFrame struct {
	Handle      uint64 // in a reply: the status
	Read        bool
	Compression Compression
	Off         uint64
	Total       uint32
	FragOff     uint32
	FragLen     uint32
	WireLen     uint32
}

// AppendIO appends an IO payload to b.
func AppendIO(b []byte, f IOFrame) []byte {
	var read uint32
	if f.Read {
		read = 1
	}
	b = le.AppendUint64(b, f.Handle)
	b = le.AppendUint32(b, read)
	b = le.AppendUint32(b, uint32(f.Compression))
	b = le.AppendUint64(b, f.Off)
	b = le.AppendUint32(b, f.Total)
	b = le.AppendUint32(b, f.FragOff)
	b = le.AppendUint32(b, f.FragLen)
	b = le.AppendUint32(b, f.WireLen)
	return le.AppendUint32(b, 0)
}

// ReadRequest is the payload that asks for n bytes at off.
func ReadRequest(handle, off uint64, n uint32, c Compression) IOFrame {
	return IOFrame{Handle: handle, Read: true, Compression: c, Off: off, Total: n, FragLen: n, WireLen: n}
}

// ParseIO reads an IO payload. It checks what can be wrong in itself: the fragment lies within the operation, and
// raw data have the length they stand for. Whether it fits a request is for the caller to check.
func ParseIO(b []byte) (IOFrame, error) {
	if err := need(IO, b, IOSize); err != nil {
		return IOFrame{}, err
	}
	f := IOFrame{
		Handle: le.Uint64(b), Read: le.Uint32(b[8:]) == 1, Compression: Compression(le.Uint32(b[12:])),
		Off: le.Uint64(b[16:]), Total: le.Uint32(b[24:]), FragOff: le.Uint32(b[28:]),
		FragLen: le.Uint32(b[32:]), WireLen: le.Uint32(b[36:]),
	}
	switch {
	case le.Uint32(b[8:]) > 1:
		return f, fmt.Errorf("%w: IO of kind %d", ErrFrame, le.Uint32(b[8:]))
	case f.Compression > Skipz:
		return f, fmt.Errorf("%w: compression type %d", ErrFrame, f.Compression)
	case f.Total > MaxIO:
		return f, fmt.Errorf("%w: IO of %d bytes", ErrFrame, f.Total)
	case uint64(f.FragOff)+uint64(f.FragLen) > uint64(f.Total):
		return f, fmt.Errorf("%w: fragment %d+%d of an IO of %d bytes", ErrFrame, f.FragOff, f.FragLen, f.Total)
	}
	return f, nil
}

// Session is the payload of OPEN_SESSION:
//
//	0 u32 flags 0 | u32 buffer size, bytes | u32 buffers | u32 log level 0
//
// A reply fragment carries at most one buffer of data. All zeros gives buffers of 64 KiB. The host keeps
// size x count bytes for the session: more than 16 MB is refused.
type Session struct{ BufSize, BufCount uint32 }

// AppendSession appends an OPEN_SESSION payload to b.
func AppendSession(b []byte, s Session) []byte {
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, s.BufSize)
	b = le.AppendUint32(b, s.BufCount)
	return le.AppendUint32(b, 0)
}

// ParseSession reads an OPEN_SESSION payload.
func ParseSession(b []byte) (Session, error) {
	if err := need(OpenSession, b, OpenSessionSize); err != nil {
		return Session{}, err
	}
	return Session{le.Uint32(b[4:]), le.Uint32(b[8:])}, nil
}

// OpenRequest is the payload of OPEN_FILE; PathLen bytes of datastore path follow, without NUL:
//
//	0 u32 path length | 3 x u32 0 | 16 u32 file type | 20 u32 flags | zeros to 60
type OpenRequest struct {
	PathLen  uint32
	FileType uint32
	Flags    uint32
}

// Writable says whether the flags ask for writing.
func (r OpenRequest) Writable() bool { return r.Flags&flagReadOnly == 0 }

// AppendOpen appends an OPEN_FILE request payload to b.
func AppendOpen(b []byte, r OpenRequest) []byte {
	var p [OpenFileSize]byte
	le.PutUint32(p[:], r.PathLen)
	le.PutUint32(p[fileTypeAt:], r.FileType)
	le.PutUint32(p[fileFlagsAt:], r.Flags)
	return append(b, p[:]...)
}

// ParseOpen reads an OPEN_FILE request payload.
func ParseOpen(b []byte) (OpenRequest, error) {
	if err := need(OpenFile, b, OpenFileSize); err != nil {
		return OpenRequest{}, err
	}
	r := OpenRequest{le.Uint32(b), le.Uint32(b[fileTypeAt:]), le.Uint32(b[fileFlagsAt:])}
	if r.PathLen == 0 || r.PathLen > MaxPath {
		return r, fmt.Errorf("%w: path of %d bytes", ErrFrame, r.PathLen)
	}
	return r, nil
}

// File is the payload of the reply to OPEN_FILE:
//
//	 0 u64 status | u64 handle | 16 u32 file type | u32 flags | 24 u32 0
//	28 u64 capacity, bytes | 36 u32 sector size, 0 = 512 | u32 cylinders | u32 heads | u32 sectors | zeros to 60
//
// The capacity need not be a multiple of a cylinder.
type File struct {
	Status, Handle            uint64
	FileType, Flags           uint32
	Capacity                  uint64
	SectorSize                uint32
	Cylinders, Heads, Sectors uint32
}

// AppendFile appends an OPEN_FILE reply payload to b.
func AppendFile(b []byte, f File) []byte {
	var p [OpenFileSize]byte
	le.PutUint64(p[:], f.Status)
	le.PutUint64(p[8:], f.Handle)
	le.PutUint32(p[fileTypeAt:], f.FileType)
	le.PutUint32(p[fileFlagsAt:], f.Flags)
	le.PutUint64(p[fileCapacityAt:], f.Capacity)
	for i, v := range [...]uint32{f.SectorSize, f.Cylinders, f.Heads, f.Sectors} {
		le.PutUint32(p[fileCapacityAt+8+4*i:], v)
	}
	return append(b, p[:]...)
}

// ParseFile reads an OPEN_FILE reply payload.
func ParseFile(b []byte) (File, error) {
	if err := need(OpenFile, b, OpenFileSize); err != nil {
		return File{}, err
	}
	return File{
		Status: le.Uint64(b), Handle: le.Uint64(b[8:]),
		FileType: le.Uint32(b[fileTypeAt:]), Flags: le.Uint32(b[fileFlagsAt:]),
		Capacity: le.Uint64(b[fileCapacityAt:]), SectorSize: le.Uint32(b[36:]),
		Cylinders: le.Uint32(b[40:]), Heads: le.Uint32(b[44:]), Sectors: le.Uint32(b[48:]),
	}, nil
}

// Failure is the payload of an ERROR; TextLen bytes of text follow and must be read:
//
//	0 u64 code | u32 0 | u32 text length
type Failure struct {
	Code    uint64
	TextLen uint32
}

// AppendFailure appends an ERROR payload to b.
func AppendFailure(b []byte, f Failure) []byte {
	b = le.AppendUint64(b, f.Code)
	b = le.AppendUint32(b, 0)
	return le.AppendUint32(b, f.TextLen)
}

// ParseFailure reads an ERROR payload.
func ParseFailure(b []byte) (Failure, error) {
	if err := need(Error, b, ErrorSize); err != nil {
		return Failure{}, err
	}
	f := Failure{le.Uint64(b), le.Uint32(b[12:])}
	if f.TextLen > MaxText {
		return f, fmt.Errorf("%w: ERROR with %d bytes of text", ErrFrame, f.TextLen)
	}
	return f, nil
}

// DDB is the payload of DDB_GET. In a request, Handle names the disk and Len bytes of key follow (without "ddb.");
// in a reply Handle is 0 and Len bytes of value follow, none when the key is missing:
//
//	request 0 u64 handle | u32 key length | u32 0
//	reply   0 u64 0      | u32 0          | u32 value length
type DDB struct {
	Handle uint64
	Len    uint32
}

// AppendDDBRequest appends a DDB_GET request payload to b.
func AppendDDBRequest(b []byte, d DDB) []byte {
	b = le.AppendUint64(b, d.Handle)
	b = le.AppendUint32(b, d.Len)
	return le.AppendUint32(b, 0)
}

// ParseDDBRequest reads a DDB_GET request payload.
func ParseDDBRequest(b []byte) (DDB, error) { return parseDDB(b, 8) }

// AppendDDBReply appends a DDB_GET reply payload to b.
func AppendDDBReply(b []byte, d DDB) []byte {
	b = le.AppendUint64(b, d.Handle)
	b = le.AppendUint32(b, 0)
	return le.AppendUint32(b, d.Len)
}

// ParseDDBReply reads a DDB_GET reply payload.
func ParseDDBReply(b []byte) (DDB, error) { return parseDDB(b, 12) }

func parseDDB(b []byte, lenAt int) (DDB, error) {
	if err := need(DDBGet, b, DDBSize); err != nil {
		return DDB{}, err
	}
	d := DDB{le.Uint64(b), le.Uint32(b[lenAt:])}
	if d.Len > MaxDDB {
		return d, fmt.Errorf("%w: DDB_GET of %d bytes", ErrFrame, d.Len)
	}
	return d, nil
}

// Query is the payload of QUERY_ALLOCATED_BLOCKS, of a request as of a reply:
//
//	0 u64 handle | u64 0 | 16 u64 chunk size, bytes | 24 u64 start, bytes | 32 u64 chunks | u64 0
//
// The reply repeats the chunks; a bitmap of [BitmapSize] bytes follows, bit i (least significant first) set: chunk i
// is allocated. Start is a multiple of the chunk size.
type Query struct{ Handle, ChunkSize, Start, Chunks uint64 }

// AppendQuery appends a QUERY_ALLOCATED_BLOCKS payload to b.
func AppendQuery(b []byte, q Query) []byte {
	for _, v := range [...]uint64{q.Handle, 0, q.ChunkSize, q.Start, q.Chunks, 0} {
		b = le.AppendUint64(b, v)
	}
	return b
}

// ParseQuery reads a QUERY_ALLOCATED_BLOCKS payload.
func ParseQuery(b []byte) (Query, error) {
	if err := need(QueryAllocated, b, QuerySize); err != nil {
		return Query{}, err
	}
	q := Query{le.Uint64(b), le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[queryCountAt:])}
	if q.Chunks > MaxQueryChunks {
		return q, fmt.Errorf("%w: query of %d chunks", ErrFrame, q.Chunks)
	}
	return q, nil
}

// BitmapSize is the size in bytes of a bitmap of n chunks: padded to a multiple of 4.
func BitmapSize(n uint64) int { return int((n + 31) / 32 * 4) }
