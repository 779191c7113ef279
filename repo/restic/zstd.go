package restic

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/klauspost/compress/zstd"
)

// Compression says how hard to compress. The texts are restic's RESTIC_COMPRESSION values.
type Compression string

// The levels. Auto, the default, weighs time against size for each chunk: see [Zstd.CompressChunk]. Restic's own auto is
// what everything but chunks gets, and better and max are restic's too.
const (
	CompressionAuto    Compression = "auto"
	CompressionOff     Compression = "off"
	CompressionFastest Compression = "fastest"
	CompressionBetter  Compression = "better"
	CompressionMax     Compression = "max"
)

// zstdWindow is the window restic writes with, in bytes. Readers built on libzstd hold one window per stream.
const zstdWindow = 512 << 10

// Chunks are tried on a sample: sampleSize bytes from the middle. What restic's level would save of the fast level's output
// must be more than 1/worthwhile to be worth its time, which is 1.7 times the fast level's.
//
// Measured in stored bytes beside restic's level, and in time of compressing, by this rule and with every chunk fast:
//
//	/usr of Debian, 1.5 GiB      1.037 in 0.76 of the time    1.057 in 0.59
//	/usr/share, 300 MiB          1.019 in 0.74                1.023 in 0.62
//	Go's module cache, 300 MiB   1.010 in 0.76                1.010 in 0.68
//	database pages, 100 MiB      0.949 in 0.45                0.949 in 0.43
//
// Samples of 32 KiB, or of two pieces, choose no better.
const (
	sampleSize = 16 << 10
	worthwhile = 18
)

// Zstd compresses and decompresses blobs and files. Its methods may be called concurrently.
type Zstd struct {
	off  bool
	enc  *zstd.Encoder
	fast *zstd.Encoder // nil unless chunks may be compressed by it
	dec  *zstd.Decoder
}

// NewZstd makes a codec for a level; the empty level is auto.
func NewZstd(level Compression) (*Zstd, error) {
	var l zstd.EncoderLevel
	switch level {
	case CompressionAuto, CompressionOff, "":
		l = zstd.SpeedDefault
	case CompressionFastest:
		l = zstd.SpeedFastest
	case CompressionBetter:
		l = zstd.SpeedBetterCompression
	case CompressionMax:
		l = zstd.SpeedBestCompression
	default:
		return nil, fmt.Errorf("compression %q is none of auto, off, fastest, better, max", level)
	}
	z := &Zstd{off: level == CompressionOff}
	var err error
	if z.enc, err = newEncoder(l); err != nil {
		return nil, err
	}
	if l == zstd.SpeedDefault {
		if z.fast, err = newEncoder(zstd.SpeedFastest); err != nil {
			return nil, err
		}
	}
	// The limit to the destination's capacity is what stops a bomb: nothing is decoded that was not announced.
	z.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(64<<20), zstd.WithDecoderMaxMemory(MaxPackSize))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return z, nil
}

func newEncoder(l zstd.EncoderLevel) (*zstd.Encoder, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(l), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(zstdWindow), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return enc, nil
}

// Off reports whether data is to be stored uncompressed. Trees and files are compressed all the same.
func (z *Zstd) Off() bool { return z.off }

// Compress appends one frame that holds data.
func (z *Zstd) Compress(dst, data []byte) []byte { return appendFrame(z.enc, dst, data) }

func appendFrame(enc *zstd.Encoder, dst, data []byte) []byte {
	watchRead(data)
	out := enc.EncodeAll(data, dst)
	watchWrite(out[len(dst):])
	return out
}

// CompressChunk appends one frame that holds a chunk. At the level auto it takes restic's level where a sample tells that it
// saves more than an eighteenth, and the fast level elsewhere; the choice depends on nothing but the chunk.
func (z *Zstd) CompressChunk(dst, chunk []byte) []byte {
	if z.fast != nil && z.fastDoes(dst, chunk) {
		return appendFrame(z.fast, dst, chunk)
	}
	return appendFrame(z.enc, dst, chunk)
}

// fastDoes compresses a sample in both ways, into scratch's spare capacity.
func (z *Zstd) fastDoes(scratch, chunk []byte) bool {
	sample := chunk
	if spare := len(chunk) - sampleSize; spare > 0 {
		sample = chunk[spare/2:][:sampleSize]
	}
	fast := len(appendFrame(z.fast, scratch, sample)) - len(scratch)
	better := len(appendFrame(z.enc, scratch, sample)) - len(scratch)
	return fast-better <= fast/worthwhile
}

// Decompress decodes a frame of exactly len(dst) bytes of content into dst.
func (z *Zstd) Decompress(dst, frame []byte) error {
	watchRead(frame)
	watchWrite(dst)
	out, err := z.dec.DecodeAll(frame, dst[:0:len(dst)])
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	if len(out) != len(dst) {
		return fmt.Errorf("zstd: frame holds %d bytes, %d were announced", len(out), len(dst))
	}
	return nil
}

// Close frees the codec's goroutines and memory.
func (z *Zstd) Close() {
	z.enc.Close()
	if z.fast != nil {
		z.fast.Close()
	}
	z.dec.Close()
}

// maxUnpacked bounds the decoded size of a file in bytes. restic's index files have some 50,000 blobs, 8 MB of JSON,
// but older versions and other writers made larger ones: this holds 1.5 million.
func maxUnpacked(t FileType) int {
	if t == IndexFile {
		return 256 << 20
	}
	return 64 << 20
}

// PackUnpacked appends the plaintext of a lock, snapshot or index file that holds the JSON document:
//
//	version 1: the document
//	version 2: byte 2, one zstd frame of the document
func (z *Zstd) PackUnpacked(dst, document []byte, version int) []byte {
	if version < 2 {
		return append(dst, document...)
	}
	return z.Compress(append(dst, 2), document)
}

// ErrUnpacked says that the plaintext of a file is neither JSON nor a known encoding of it.
var ErrUnpacked = errors.New("unknown encoding")

// Unpack returns the JSON document in the plaintext of a file of type t; it may alias plain.
func (z *Zstd) Unpack(t FileType, plain []byte) ([]byte, error) {
	if len(plain) == 0 {
		return nil, fmt.Errorf("%w: empty", ErrUnpacked)
	}
	switch plain[0] {
	case '{', '[':
		return plain, nil
	case 2:
		return z.unpackFrame(plain[1:], maxUnpacked(t))
	}
	return nil, fmt.Errorf("%w: first byte %#02x", ErrUnpacked, plain[0])
}

// UnpackedSize is how much memory [Zstd.Unpack] takes for a file of type t, at most, in bytes.
func UnpackedSize(t FileType, plain []byte) int {
	if len(plain) == 0 || plain[0] != 2 {
		return len(plain)
	}
	var h zstd.Header
	if err := h.Decode(plain[1:]); err != nil || !h.HasFCS {
		return maxUnpacked(t)
	}
	return len(plain) + int(min(h.FrameContentSize, uint64(maxUnpacked(t))))
}

// Plausible reports whether a frame of length bytes can hold content of size bytes: each block of 128 KiB takes at least 4 bytes.
func Plausible(length int, size uint64) bool {
	return size <= uint64(length)*(128<<10)/4+(128<<10)
}

// unpackFrame decodes a frame whose size only the frame itself tells, if it does: it grows the destination up to limit.
func (z *Zstd) unpackFrame(frame []byte, limit int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(frame); err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	if h.HasFCS {
		if h.FrameContentSize > uint64(limit) {
			return nil, fmt.Errorf("zstd: frame claims %d bytes, more than %d", h.FrameContentSize, limit)
		}
		if !Plausible(len(frame), h.FrameContentSize) {
			return nil, fmt.Errorf("zstd: frame of %d bytes claims %d", len(frame), h.FrameContentSize)
		}
		out := make([]byte, h.FrameContentSize)
		return out, z.Decompress(out, frame)
	}
	for size := max(64<<10, 8*len(frame)); ; size *= 4 {
		size = min(size, limit)
		out, err := z.dec.DecodeAll(frame, make([]byte, 0, size))
		if err == nil {
			return out, nil
		}
		if !errors.Is(err, zstd.ErrDecoderSizeExceeded) || size == limit {
			return nil, fmt.Errorf("zstd: %w", err)
		}
	}
}
