// Package wire is what vmkeep and its helper process vmkeep-vddk say to each other over a socket pair.
//
// It hides how messages lie in bytes. Bytes of disks do not pass here: they lie in memory both processes map, and a
// message only says where. Requests are numbered by the client; every request is answered by one Reply with the same
// number, in any order.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// A frame, little-endian:
//
//	+------------+------+-----------+------------+----------------+
//	| body bytes | kind | zero      | number     | body           |
//	| u32        | u8   | 3 bytes   | u64        |                |
//	+------------+------+-----------+------------+----------------+
//
// Body of Read and Write:
//
//	+-----------+-----------+--------------+---------------+
//	| disk  u32 | sectors   | where in the | first sector  |
//	|           | u32       | memory  u64  | u64           |
//	+-----------+-----------+--------------+---------------+
//
// Body of Reply: the library's code (u64, 0: success), then JSON: the result, or a [Failure].
// Body of Log: level (u8), then text. Bodies of all others: JSON.
type Frame struct {
	Kind   Kind
	Number uint64
	Body   []byte
}

// Kind says what a frame is.
type Kind uint8

// Requests, in the order of a life; then what the helper sends.
const (
	Init Kind = 1 + iota
	Connect
	Open
	Read
	Write
	Flush
	Blocks
	Close
	Prepare
	EndAccess
	Cleanup
	Bye
	Reply
	Log
	kinds
)

func (k Kind) String() string {
	if k == 0 || k >= kinds {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return [...]string{"", "init", "connect", "open", "read", "write", "flush", "blocks", "close", "prepare", "end access", "cleanup", "bye", "reply", "log"}[k]
}

// Levels of Log.
const (
	LevelInfo uint8 = iota
	LevelWarn
	LevelPanic // the library ends the process after it
)

// Geometry of the shared memory: there is a piece for every request that may be in flight, so that a disk that hangs holds
// up no other, and for what is lent to callers. Pages never touched take no memory.
const (
	Disks      = 64  // per helper
	Depth      = 16  // requests in flight per disk
	Lendable   = 256 // pieces with callers
	Pieces     = Disks*Depth + Lendable
	PieceBytes = 1 << 20  // largest request; hosts run out of NFC memory above 2 MiB
	MemoryFile = 4        // descriptor of the memory in the helper
	SocketFile = 3        // descriptor of the socket in the helper
	LockFile   = 5        // descriptor of the lock on the machine, where its disks may be attached
	SectorSize = 512      // bytes
	ChunkSize  = 64 << 10 // bytes, the smallest unit QueryAllocatedBlocks takes (128 sectors)
	MaxChunks  = 256 << 10
	MemorySize = Pieces * PieceBytes
	headSize   = 16
	maxBody    = 8*MaxChunks + 4096 // blocks: at most every other chunk, 16 bytes each
	transferSz = 24
)

// CodeHelper is a failure of the helper itself, not of the library. It has no low 16 bits.
const CodeHelper uint64 = 1 << 62

// ErrFrame is a frame that breaks the protocol.
var ErrFrame = errors.New("broken frame")

// Append appends the frame to b.
func (f Frame) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Body)))
	b = append(b, byte(f.Kind), 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, f.Number)
	return append(b, f.Body...)
}

// Next reads a frame. At the end, between frames, it gives io.EOF.
func Next(r io.Reader) (Frame, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Frame{}, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	f := Frame{Kind: Kind(head[4]), Number: binary.LittleEndian.Uint64(head[8:])}
	if n > maxBody || f.Kind == 0 || f.Kind >= kinds || head[5]|head[6]|head[7] != 0 {
		return Frame{}, fmt.Errorf("%s with %d bytes: %w", f.Kind, n, ErrFrame)
	}
	f.Body = make([]byte, n)
	if _, err := io.ReadFull(r, f.Body); err != nil {
		return Frame{}, fmt.Errorf("%s: %w", f.Kind, io.ErrUnexpectedEOF)
	}
	return f, nil
}

// Transfer asks to move sectors between a disk and the shared memory.
type Transfer struct {
	Disk, Sectors uint32
	At            uint64 // offset in the memory, bytes
	First         uint64 // sector
}

// Encode is the body of a Read or Write.
func (t Transfer) Encode() []byte {
	b := make([]byte, 0, transferSz)
	b = binary.LittleEndian.AppendUint32(b, t.Disk)
	b = binary.LittleEndian.AppendUint32(b, t.Sectors)
	b = binary.LittleEndian.AppendUint64(b, t.At)
	return binary.LittleEndian.AppendUint64(b, t.First)
}

// ParseTransfer reads the body of a Read or Write, and checks that it stays inside the memory.
func ParseTransfer(b []byte) (Transfer, error) {
	if len(b) != transferSz {
		return Transfer{}, fmt.Errorf("transfer of %d bytes: %w", len(b), ErrFrame)
	}
	t := Transfer{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}
	if t.Disk >= Disks || t.Sectors == 0 || t.Sectors > PieceBytes/SectorSize || t.First > 1<<54 ||
		t.At%SectorSize != 0 || t.At > MemorySize-uint64(t.Sectors)*SectorSize {
		return Transfer{}, fmt.Errorf("transfer of %d sectors at %d of disk %d, at %d of the memory: %w", t.Sectors, t.First, t.Disk, t.At, ErrFrame)
	}
	return t, nil
}

// Failure tells which call failed, and the library's text for the code.
type Failure struct{ Call, Text string }

// EncodeReply is the body of a Reply; v is the result or the Failure, nil for nothing.
func EncodeReply(code uint64, v any) []byte {
	b := binary.LittleEndian.AppendUint64(nil, code)
	if v == nil {
		return b
	}
	j, err := json.Marshal(v)
	if err != nil { // only values of this package are encoded
		panic(err)
	}
	return append(b, j...)
}

// ParseReply splits the body of a Reply.
func ParseReply(b []byte) (code uint64, result []byte, err error) {
	if len(b) < 8 {
		return 0, nil, fmt.Errorf("reply of %d bytes: %w", len(b), ErrFrame)
	}
	return binary.LittleEndian.Uint64(b), b[8:], nil
}

// EncodeLog is the body of a Log.
func EncodeLog(level uint8, text string) []byte { return append([]byte{level}, text...) }

// ParseLog splits the body of a Log.
func ParseLog(b []byte) (level uint8, text string, err error) {
	if len(b) == 0 || b[0] > LevelPanic {
		return 0, "", fmt.Errorf("log: %w", ErrFrame)
	}
	return b[0], string(b[1:]), nil
}

// AppendBlocks appends ranges to the body of a Reply to Blocks: pairs of first sector and sectors, both u64.
func AppendBlocks(b []byte, pairs [][2]uint64) []byte {
	for _, p := range pairs {
		b = binary.LittleEndian.AppendUint64(b, p[0])
		b = binary.LittleEndian.AppendUint64(b, p[1])
	}
	return b
}

// ParseBlocks reads ranges: ascending, apart, not empty, and inside [first, first+sectors).
func ParseBlocks(b []byte, first, sectors uint64) ([][2]uint64, error) {
	if len(b)%16 != 0 {
		return nil, fmt.Errorf("blocks of %d bytes: %w", len(b), ErrFrame)
	}
	out := make([][2]uint64, 0, len(b)/16)
	at, end := first, first+sectors
	for ; len(b) > 0; b = b[16:] {
		p := [2]uint64{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
		if p[0] < at || p[0] > end || p[1] == 0 || p[1] > end-p[0] {
			return nil, fmt.Errorf("block of %d sectors at %d, asked from %d to %d: %w", p[1], p[0], at, end, ErrFrame)
		}
		out, at = append(out, p), p[0]+p[1]
	}
	return out, nil
}
