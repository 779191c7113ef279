package mounttest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// MountedNTFS mounts an image with ntfs-3g, streams shown as attributes "user.NAME", and calls fn with the directory.
func MountedNTFS(t testing.TB, image, options string, fn func(dir string)) {
	t.Helper()
	dir := filepath.Join(filepath.Dir(image), "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command("ntfs-3g", "-o", "no_detach,streams_interface=xattr,special_files=wsl,"+options, image, dir)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
		var here, above unix.Stat_t
		if unix.Stat(dir, &here) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev {
			tick.Stop()
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("ntfs-3g %s: %v\n%s", image, err, said.String())
		default:
		}
	}
	defer func() {
		if err := Unmount(dir); err != nil {
			t.Error(err)
		}
		// It writes what it still has after it was unmounted.
		if err := <-ended; err != nil {
			t.Errorf("ntfs-3g: %v\n%s", err, said.String())
		}
	}()
	fn(dir)
}
