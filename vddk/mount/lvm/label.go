package lvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
)

var le = binary.LittleEndian

// pv is a physical volume found.
type pv struct {
	uuid  string // 32 characters
	dev   device.Device
	name  string // of its device
	index int    // of its candidate
	texts []text // metadata, as many copies as there are areas
}

var errNoLabel = errors.New("no label of LVM")

// Bounds on what a label may claim. LVM's default area is 1 MiB.
const (
	maxAreas = 16
	maxText  = 8 << 20
)

// readPV reads the label of a physical volume, in one of the first four sectors of its device:
//
//	0          8        16    20      24         32
//	+----------+--------+-----+-------+----------+ - - - at "offset" from the label's start:
//	| LABELONE | sector | crc | offset| LVM2 001 |      UUID(32) size(8), data areas, metadata areas:
//	+----------+--------+-----+-------+----------+      offset(8) size(8) each, both lists ended by zeros
//
// and the current text of each metadata area, which begins with a header of 512 bytes:
//
//	crc(4) " LVM2 x[5A%r0N*>"(16) version(4) start(8) size(8), then the text: offset(8) size(8) crc(4) flags(4)
//
// The text is kept in the rest of the area as in a ring.
func readPV(dev device.Device) (*pv, error) {
	head := make([]byte, min(2048, dev.Size()))
	if err := read(dev, head, 0); err != nil {
		return nil, errNoLabel
	}
	for len(head) >= 512 {
		label := head[:512]
		head = head[512:]
		if string(label[:8]) != "LABELONE" || string(label[24:32]) != "LVM2 001" || crc(label[20:]) != le.Uint32(label[16:]) {
			continue
		}
		at := int(le.Uint32(label[20:]))
		if at < 32 || at > 512-40 {
			return nil, errors.New("label of LVM is damaged")
		}
		p := &pv{uuid: string(label[at : at+32]), dev: dev}
		lists := label[at+40:]
		next := func() (off, size uint64, ok bool) {
			if len(lists) < 16 {
				return 0, 0, false
			}
			off, size = le.Uint64(lists), le.Uint64(lists[8:])
			lists = lists[16:]
			return off, size, off != 0
		}
		for _, _, ok := next(); ok; _, _, ok = next() {
		}
		for off, size, ok := next(); ok && len(p.texts) < maxAreas; off, size, ok = next() {
			t, err := readText(dev, off, size)
			p.texts = append(p.texts, text{t, err})
		}
		return p, nil
	}
	return nil, errNoLabel
}

// text is the metadata of a volume group, or why it could not be read; empty where an area was never used.
type text struct {
	s   string
	err error
}

func readText(dev device.Device, off, size uint64) (string, error) {
	if off > uint64(dev.Size()) || size < 1024 || size > uint64(dev.Size())-off {
		return "", fmt.Errorf("metadata area of %d bytes at %d is outside the volume", size, off)
	}
	h := make([]byte, 512)
	if err := read(dev, h, int64(off)); err != nil {
		return "", err
	}
	if string(h[4:20]) != " LVM2 x[5A%r0N*>" || crc(h[4:]) != le.Uint32(h) {
		return "", errors.New("header of the metadata area is damaged")
	}
	at, n := le.Uint64(h[40:]), le.Uint64(h[48:])
	const ignored = 1
	if at == 0 || n == 0 || le.Uint32(h[60:])&ignored != 0 {
		return "", nil
	}
	if at < 512 || at >= size || n > size-512 || n > maxText {
		return "", fmt.Errorf("metadata of %d bytes at %d", n, at)
	}
	b := make([]byte, n)
	first := min(n, size-at)
	if err := read(dev, b[:first], int64(off+at)); err != nil {
		return "", err
	}
	if first < n {
		if err := read(dev, b[first:], int64(off)+512); err != nil {
			return "", err
		}
	}
	if crc(b) != le.Uint32(h[56:]) {
		return "", errors.New("metadata has a wrong checksum")
	}
	return strings.TrimRight(string(b), "\x00"), nil
}

// crc is LVM's checksum: CRC-32 that starts with its own number and is not complemented at the end.
func crc(b []byte) uint32 {
	const start = 0xf597a6cf
	return ^crc32.Update(^uint32(start), crc32.IEEETable, b)
}

// read fills p or fails.
func read(dev device.Device, p []byte, off int64) error {
	n, err := dev.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = errors.New("short read")
	}
	return err
}
