package ntfs_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
	"github.com/vmkeep/vmkeep/vddk/mount/ntfs"
)

const mib = 1 << 20

// image makes an NTFS and returns its path and what ntfs-3g sees in it.
func image(t *testing.T, size int64, mkfs string, fill func(dir string) error) (string, mounttest.Manifest) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := mounttest.Blank(path, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkntfs", append(strings.Fields("-q -F -f "+mkfs), path)...).CombinedOutput(); err != nil {
		t.Fatalf("mkntfs %s: %v\n%s", mkfs, err, out)
	}
	mounttest.MountedNTFS(t, path, "compression,efs_raw,big_writes", func(dir string) {
		if err := fill(dir); err != nil {
			t.Fatalf("fill: %v", err)
		}
	})
	return path, truth(t, path)
}

// truth is what ntfs-3g sees, in the words of guestfs.
func truth(t *testing.T, path string) mounttest.Manifest {
	t.Helper()
	var want mounttest.Manifest
	mounttest.MountedNTFS(t, path, "ro", func(dir string) {
		var err error
		if want, err = mounttest.Truth(dir); err != nil {
			t.Fatalf("what ntfs-3g sees: %v", err)
		}
		for i := range want {
			e := &want[i]
			// Without a mapping of users ntfs-3g shows all rights, and owner 0.
			e.Mode = map[string]uint32{"directory": 0o755, "symlink": 0o777}[e.Type]
			if e.Mode == 0 {
				e.Mode = 0o644
			}
			streams := map[string]string{}
			for name, value := range e.Xattrs {
				if s, ok := strings.CutPrefix(name, "user."); ok {
					streams[s] = digest(value)
				}
			}
			e.Xattrs, e.Streams = system(t, filepath.Join(dir, e.Path)), streams
			if s, ok := strings.CutPrefix(e.Path, "meta/t-"); ok {
				// ntfs-3g shows fractions before 1970 wrongly; what was set is known.
				e.Mtime, e.Atime = "-"+s+".123456700", "-"+s+".000000000"
			}
		}
	})
	return want
}

// digest is the SHA-256 of an attribute as a manifest shows it.
func digest(shown string) string {
	if _, sum, ok := strings.Cut(shown, "sha256 "); ok {
		return sum
	}
	b, err := hex.DecodeString(shown)
	if err != nil {
		return err.Error()
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// system reads the attributes that ntfs-3g gives and does not list.
func system(t *testing.T, path string) map[string]string {
	t.Helper()
	out := map[string]string{}
	b := make([]byte, 128<<10)
	for _, name := range []string{"system.ntfs_acl", "system.ntfs_reparse_data", "system.ntfs_ea", "system.ntfs_object_id"} {
		n, err := unix.Lgetxattr(path, name, b)
		if err != nil || n == 0 {
			continue
		}
		if n > 64 {
			out[name] = fmt.Sprintf("%d bytes, sha256 %x", n, sha256.Sum256(b[:n]))
		} else {
			out[name] = hex.EncodeToString(b[:n])
		}
	}
	return out
}

func source(t testing.TB, path string) *guestfs.Source {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return guestfs.NewSource(device.Disk(f, 0, st.Size()))
}

func open(t testing.TB, path string) *guestfs.FS {
	t.Helper()
	f, err := guestfs.Open(ntfs.Format(), []*guestfs.Source{source(t, path)})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func text(rnd *rand.Rand, n int) []byte {
	words := []string{"the quick", "brown fox", "jumps", "over", "lazy dog", "\r\n", "0123456789"}
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(words[rnd.IntN(len(words))] + " ")
	}
	return []byte(b.String()[:n])
}

func noise(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}
