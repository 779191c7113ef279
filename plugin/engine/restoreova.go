package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere"
)

// An OVA is a tar archive in this order (DSP0243, "Distribution"):
//
//	<machine>.ovf   the descriptor, with the size of every disk's file
//	<machine>.mf    the SHA-256 of every other file
//	<disk>.vmdk     streamOptimized, one after the other
//
// What comes first is known last. But the lengths are known: the manifest has a line of fixed length for each file, and
// the descriptor is padded with white space, which XML allows after its end, to the length it has with the longest
// sizes. So their places are left free, the disks are streamed into the file once, hashed on the way, and the rest is
// written at the end.

// tarBlock is the unit of tar archives in bytes.
const tarBlock = 512

// ovaDisk is a disk in the archive.
type ovaDisk struct {
	file   string
	header int64 // where its tar header is
	size   int64 // of the file
	sum    hash.Hash
}

// toOVA restores the machine to an OVA.
func (j *restoreJob) toOVA(ctx context.Context, name string) error {
	if len(j.disks) == 0 {
		return &plugin.Error{Code: plugin.CodePointNotFound, Summary: "the point holds no disk to put into an OVA", Remedy: "take another point"}
	}
	if len(j.point.manifest.Config) == 0 {
		return &plugin.Error{Code: plugin.CodeDamaged, Summary: "the point does not tell the machine's configuration", Remedy: "restore its disks in another format"}
	}
	return j.incomplete(strings.TrimSuffix(name, ".ova"), func(again bool) (err error) {
		f, err := j.createFile(name, again)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := f.Truncate(0); err != nil {
			return err
		}
		j.report.Files = append(j.report.Files, name)
		return j.writeOVA(ctx, f)
	})
}

func (j *restoreJob) writeOVA(ctx context.Context, f *os.File) error {
	base := archiveName(j.point.manifest.Machine.Name)
	disks := make([]ovaDisk, len(j.disks))
	for i, d := range j.disks {
		disks[i] = ovaDisk{file: archiveName(d.Name) + ".vmdk", size: 1<<63 - 1, sum: sha256.New()}
	}
	longest, err := j.ovf(disks)
	if err != nil {
		return err
	}
	manifestAt := tarBlock + blocks(int64(len(longest)))
	at := manifestAt + tarBlock + blocks(int64(len(ovaManifest(base, nil, disks))))
	for i, d := range j.disks {
		disks[i].header = at
		if disks[i].size, err = j.streamTo(ctx, d, f, at+tarBlock, disks[i].sum); err != nil {
			return err
		}
		at += tarBlock + blocks(disks[i].size)
	}
	for _, d := range disks {
		if err := writeTarHeader(f, d.header, d.file, d.size); err != nil {
			return err
		}
	}
	envelope, err := j.ovf(disks)
	if err != nil {
		return err
	}
	envelope = append(envelope, bytes.Repeat([]byte("\n"), len(longest)-len(envelope))...)
	if err := writeTarFile(f, 0, base+".ovf", envelope); err != nil {
		return err
	}
	if err := writeTarFile(f, manifestAt, base+".mf", ovaManifest(base, envelope, disks)); err != nil {
		return err
	}
	// Two blocks of zeros end an archive; the length is a multiple of 20 blocks, as tar's own.
	const record = 20 * tarBlock
	if err := f.Truncate((at + 2*tarBlock + record - 1) / record * record); err != nil {
		return err
	}
	return f.Sync()
}

// ovf is the descriptor of the package.
func (j *restoreJob) ovf(disks []ovaDisk) ([]byte, error) {
	spec := vsphere.OVFSpec{ConfigInfo: j.point.manifest.Config, NICs: j.point.manifest.networkCards(), Name: j.req.Target.Name}
	for i, d := range j.disks {
		spec.Disks = append(spec.Disks, vsphere.OVFDisk{Name: d.Name, File: disks[i].file, Size: disks[i].size, Capacity: d.Capacity})
	}
	return vsphere.OVF(spec)
}

// ovaManifest lists the SHA-256 of every file; its length depends on the names only.
func ovaManifest(base string, envelope []byte, disks []ovaDisk) []byte {
	sum := sha256.Sum256(envelope)
	out := fmt.Appendf(nil, "SHA256(%s.ovf)= %s\n", base, hex.EncodeToString(sum[:]))
	for _, d := range disks {
		out = fmt.Appendf(out, "SHA256(%s)= %s\n", d.file, hex.EncodeToString(d.sum.Sum(nil)))
	}
	return out
}

// archiveName is a name that every reader of archives and manifests takes, and that fits the oldest header.
func archiveName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f && !strings.ContainsRune(`/\:*?"<>|()=`, r) {
			return r
		}
		return '_'
	}, name)
	if name = strings.TrimLeft(name[:min(len(name), 80)], "."); name == "" {
		return "machine"
	}
	return name
}

func blocks(n int64) int64 { return (n + tarBlock - 1) / tarBlock * tarBlock }

// writeTarHeader writes the header of a file, which is one block: sizes above 8 GiB as GNU's tar writes them.
func writeTarHeader(f *os.File, at int64, name string, size int64) error {
	h := tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: epoch(), Format: tar.FormatUSTAR}
	if size >= 8<<30 {
		h.Format = tar.FormatGNU
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	if b.Len() != tarBlock {
		return fmt.Errorf("archive %s: a header of %d bytes", name, b.Len())
	}
	_, err := f.WriteAt(b.Bytes(), at)
	return err
}

func writeTarFile(f *os.File, at int64, name string, data []byte) error {
	if err := writeTarHeader(f, at, name, int64(len(data))); err != nil {
		return err
	}
	_, err := f.WriteAt(data, at+tarBlock)
	return err
}
