// Package guestdisk makes disks as guests have them: a partition table, a real file system, real files, and holes
// where nothing was ever written. It needs no root and no network, only the tools of e2fsprogs.
//
// What is hidden is which tools do it and where the file system begins on the disk. Tests, the demonstration and
// benchmarks use it to play the guest: [Make] installs one, [Edit] changes files inside it, [Difference] turns the
// change into the writes that a guest's kernel would have sent to the disk.
package guestdisk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Start is where the partition begins, in bytes: 1 MiB, as every installer of the last decade aligns it.
const Start = 1 << 20

// Make writes a sparse raw disk of size bytes to path: an MBR with one Linux partition that holds an ext4 file system
// with a copy of the directory tree. The label is the file system's. The file must not exist.
func Make(ctx context.Context, path string, size int64, tree, label string) (err error) {
	if size < 64<<20 || size%(1<<20) != 0 {
		return fmt.Errorf("a disk of %d bytes: want a multiple of 1 MiB, at least 64 MiB", size)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	_, err = f.WriteAt(masterBootRecord(size), 0)
	if err = errors.Join(err, f.Truncate(size), f.Close()); err != nil {
		return err
	}
	return run(ctx, nil, "mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-d", tree, "-E", "offset="+strconv.Itoa(Start), path,
		strconv.FormatInt((size-Start)>>10, 10)+"k")
}

// masterBootRecord has one partition of type 0x83 from Start to the end, in sectors of 512 bytes.
func masterBootRecord(size int64) []byte {
	b := make([]byte, 512)
	e := b[446:]
	e[4] = 0x83
	binary.LittleEndian.PutUint32(e[8:], Start/512)
	binary.LittleEndian.PutUint32(e[12:], uint32(min((size-Start)/512, 1<<32-1)))
	b[510], b[511] = 0x55, 0xaa
	return b
}

// Edit carries out requests of debugfs(8) inside the file system of a disk that [Make] made: "write FILE NAME",
// "rm NAME", "mkdir NAME". Names with blanks are quoted.
func Edit(ctx context.Context, path string, requests []string) error {
	return run(ctx, strings.NewReader(strings.Join(requests, "\n")+"\n"), "debugfs", "-w", "-f", "-", path+"?offset="+strconv.Itoa(Start))
}

// block is the unit in which a guest writes, in bytes: a page.
const block = 4096

// Difference calls write for every run of blocks in which after differs from before, both of size bytes. Its argument
// is valid during the call only.
func Difference(before, after io.ReaderAt, size int64, write func(p []byte, off int64) error) error {
	const window = 1 << 20
	a, b := make([]byte, window), make([]byte, window)
	for off := int64(0); off < size; off += window {
		n := int(min(window, size-off))
		if _, err := before.ReadAt(a[:n], off); err != nil && err != io.EOF {
			return err
		}
		if _, err := after.ReadAt(b[:n], off); err != nil && err != io.EOF {
			return err
		}
		if bytes.Equal(a[:n], b[:n]) {
			continue
		}
		for i := 0; i < n; {
			j := i
			for j < n && !bytes.Equal(a[j:min(j+block, n)], b[j:min(j+block, n)]) {
				j = min(j+block, n)
			}
			if j > i {
				if err := write(b[i:j], off+int64(i)); err != nil {
					return err
				}
			}
			i = j + block
		}
	}
	return nil
}

// run starts a tool of e2fsprogs, which Debian keeps where only root's PATH looks.
func run(ctx context.Context, stdin io.Reader, tool string, args ...string) error {
	name, err := exec.LookPath(tool)
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin", "/opt/homebrew/opt/e2fsprogs/sbin"} {
		if err == nil {
			break
		}
		name, err = exec.LookPath(filepath.Join(dir, tool))
	}
	if err != nil {
		return fmt.Errorf("%s is not installed: install the package e2fsprogs", tool)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", tool, err, bytes.TrimSpace(out))
	}
	return nil
}
