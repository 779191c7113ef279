package mount_test

import (
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// moreGoldens are the golden images that lie with their readers, whose tests make them again.
func moreGoldens() map[string]string {
	return map[string]string{
		"ntfs": "ntfs/testdata", "btrfs": "btrfs/testdata", "fat12": "fat/testdata", "fat16": "fat/testdata",
		"fat32": "fat/testdata", "exfat": "fat/testdata", "iso9660": "iso9660/testdata",
	}
}

func TestGoldenImagesOfOtherFormats(t *testing.T) {
	for name, dir := range moreGoldens() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image, truth, err := mounttest.Golden{Name: name}.Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			f := openImage(t, image)
			got, err := mounttest.Read(f)
			if err != nil {
				t.Error(err)
			}
			if len(truth) < 100 {
				t.Errorf("only %d entries", len(truth))
			}
			for _, d := range mounttest.Diff(truth, got) {
				t.Error(d)
			}
		})
	}
}
