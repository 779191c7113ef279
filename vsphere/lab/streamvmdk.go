package lab

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// streamOptimized VMDK, the form disks have in leases and OVA files (VMware "Virtual Disk Format 5.0"):
//
//	header (512)   magic "KDMV", version 3, flags, capacity, grain size, descriptor offset/size ...
//	descriptor     text, padded
//	per grain      u64 lba | u32 size | zlib data ...                      padded to 512
//	per 512 grains u64 sectors | u32 0 | u32 1, padding, 512 x u32         grain table
//	               u64 sectors | u32 0 | u32 2, padding, n x u32           grain directory
//	               u64 1       | u32 0 | u32 3, padding, header again      footer
//	               512 zeros                                              end of stream
const (
	vmdkMagic    = 0x564d444b
	vmdkGrain    = 64 << 10
	vmdkPerTable = 512
	vmdkOverhead = 128 // sectors before the first grain
	vmdkAtFooter = ^uint64(0)

	markerTable, markerDirectory, markerFooter = 1, 2, 3
)

var vmdkOrder = binary.LittleEndian

func vmdkHeader(capacity int64, descriptor int, directory uint64) []byte {
	h := make([]byte, 512)
	vmdkOrder.PutUint32(h, vmdkMagic)
	vmdkOrder.PutUint32(h[4:], 3)
	vmdkOrder.PutUint32(h[8:], 0x30001) // newline test, compressed grains, markers
	vmdkOrder.PutUint64(h[12:], uint64(capacity/512))
	vmdkOrder.PutUint64(h[20:], vmdkGrain/512)
	vmdkOrder.PutUint64(h[28:], 1)
	vmdkOrder.PutUint64(h[36:], uint64((descriptor+511)/512))
	vmdkOrder.PutUint32(h[44:], vmdkPerTable)
	vmdkOrder.PutUint64(h[56:], directory)
	vmdkOrder.PutUint64(h[64:], vmdkOverhead)
	copy(h[73:], "\n \r\n")
	vmdkOrder.PutUint16(h[77:], 1) // deflate
	return h
}

// sectorWriter writes whole sectors and counts them.
type sectorWriter struct {
	w   io.Writer
	pos uint64 // sectors written
	err error
}

func (s *sectorWriter) write(p []byte) {
	if s.err != nil {
		return
	}
	if n := len(p) % 512; n > 0 {
		p = append(bytes.Clone(p), make([]byte, 512-n)...)
	}
	_, s.err = s.w.Write(p)
	s.pos += uint64(len(p) / 512)
}

func (s *sectorWriter) marker(kind uint32, sectors int) {
	m := make([]byte, 512)
	vmdkOrder.PutUint64(m, uint64(sectors))
	vmdkOrder.PutUint32(m[12:], kind)
	s.write(m)
}

// writeStreamVMDK writes size bytes of r.
func writeStreamVMDK(w io.Writer, r io.ReaderAt, size int64) error {
	descriptor := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n"+
		"RW %d SPARSE \"disk.vmdk\"\n\n#DDB\nddb.adapterType = \"lsilogic\"\nddb.virtualHWVersion = \"19\"\n", size/512)
	s := &sectorWriter{w: w}
	s.write(vmdkHeader(size, len(descriptor), vmdkAtFooter))
	s.write([]byte(descriptor))
	s.write(make([]byte, (vmdkOverhead-s.pos)*512))
	var directory []byte
	grain, zeros := make([]byte, vmdkGrain), make([]byte, vmdkGrain)
	for table := int64(0); table*vmdkPerTable*vmdkGrain < size && s.err == nil; table++ {
		entries, used := make([]byte, vmdkPerTable*4), false
		for i := int64(0); i < vmdkPerTable && s.err == nil; i++ {
			off := (table*vmdkPerTable + i) * vmdkGrain
			if off >= size {
				break
			}
			clear(grain)
			if _, err := r.ReadAt(grain[:min(vmdkGrain, size-off)], off); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if bytes.Equal(grain, zeros) {
				continue
			}
			packed := bytes.NewBuffer(make([]byte, 12))
			z := zlib.NewWriter(packed)
			if _, err := z.Write(grain); err != nil {
				return err
			}
			if err := z.Close(); err != nil {
				return err
			}
			p := packed.Bytes()
			vmdkOrder.PutUint64(p, uint64(off/512))
			vmdkOrder.PutUint32(p[8:], uint32(len(p)-12))
			vmdkOrder.PutUint32(entries[i*4:], uint32(s.pos))
			used = true
			s.write(p)
		}
		at := uint64(0)
		if used {
			s.marker(markerTable, len(entries)/512)
			at = s.pos
			s.write(entries)
		}
		directory = vmdkOrder.AppendUint32(directory, uint32(at))
	}
	s.marker(markerDirectory, (len(directory)+511)/512)
	at := s.pos
	s.write(directory)
	s.marker(markerFooter, 1)
	s.write(vmdkHeader(size, len(descriptor), at))
	s.write(make([]byte, 512))
	return s.err
}

// readStreamVMDK writes the disk that r carries to w, which is as large as limit bytes.
func readStreamVMDK(r io.Reader, w io.WriterAt, limit int64) error {
	br := bufio.NewReaderSize(r, 1<<20)
	h := make([]byte, 512)
	if _, err := io.ReadFull(br, h); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	capacity, grain := int64(vmdkOrder.Uint64(h[12:]))*512, int64(vmdkOrder.Uint64(h[20:]))*512
	overhead := int64(vmdkOrder.Uint64(h[64:]))
	switch {
	case vmdkOrder.Uint32(h) != vmdkMagic || vmdkOrder.Uint32(h[8:])&0x30000 != 0x30000:
		return errors.New("not a streamOptimized VMDK")
	case capacity < 0 || capacity > limit:
		return fmt.Errorf("it holds %d bytes, the disk %d", capacity, limit)
	case grain <= 0 || grain > 1<<20 || overhead < 1 || overhead > 1<<20:
		return errors.New("its header makes no sense")
	}
	if _, err := io.CopyN(io.Discard, br, (overhead-1)*512); err != nil {
		return err
	}
	m := make([]byte, 512)
	for {
		if _, err := io.ReadFull(br, m); err != nil {
			return fmt.Errorf("it ends without its end marker: %w", err)
		}
		lba, size := int64(vmdkOrder.Uint64(m)), int64(vmdkOrder.Uint32(m[8:]))
		if size == 0 {
			if vmdkOrder.Uint32(m[12:]) == 0 {
				return nil
			}
			if lba < 0 || lba > 1<<24 {
				return errors.New("a marker makes no sense")
			}
			if _, err := io.CopyN(io.Discard, br, lba*512); err != nil {
				return err
			}
			continue
		}
		if size > 2*grain || lba < 0 || lba*512 >= capacity {
			return errors.New("a grain makes no sense")
		}
		packed := make([]byte, (12+size+511)/512*512)
		copy(packed, m)
		if _, err := io.ReadFull(br, packed[512:]); err != nil {
			return err
		}
		z, err := zlib.NewReader(bytes.NewReader(packed[12 : 12+size]))
		if err != nil {
			return err
		}
		data, err := io.ReadAll(io.LimitReader(z, grain))
		if err != nil {
			return err
		}
		data = data[:min(int64(len(data)), capacity-lba*512)]
		if _, err := w.WriteAt(data, lba*512); err != nil {
			return err
		}
	}
}
