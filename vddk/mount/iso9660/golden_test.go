package iso9660_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// TestSmallDisc writes the golden image of vddk/mount's tests, when VMKEEP_GOLDEN names the directory for it.
func TestSmallDisc(t *testing.T) {
	mounttest.Need(t, "xorriso")
	path, want := disc(t, "xorrisofs -quiet -R", func(dir string) {
		_ = mounttest.Grow(dir, mounttest.Tree{Tiny: true, Minor: true})
		for _, p := range []string{"big", "links", "meta", "special", "sparse", "prealloc", "xattr"} {
			if err := os.RemoveAll(filepath.Join(dir, p)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("../sizes/./b0000100", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
	})
	compare(t, open(t, path), want, nil)
	dir := os.Getenv("VMKEEP_GOLDEN")
	if dir == "" {
		return
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var manifest bytes.Buffer
	if err := want.Write(&manifest); err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	for ext, b := range map[string][]byte{".img.zst": image, ".json.zst": manifest.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, "iso9660"+ext), enc.EncodeAll(b, nil), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
