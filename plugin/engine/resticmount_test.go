package engine_test

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// resticMounts serves the repository with the real restic mount and calls fn with the directory.
func (r *rig) resticMounts(t *testing.T, fn func(dir string)) {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("this test needs FUSE: %v", err)
		}
		t.Skip(err)
	} else {
		_ = f.Close()
	}
	dir := t.TempDir()
	cmd := r.restic().Command("mount", dir)
	var said bytes.Buffer
	cmd.Stderr = &said
	stdout, err := cmd.StdoutPipe()
	r.must(err)
	r.must(cmd.Start())
	defer func() {
		if err := exec.Command("fusermount3", "-u", dir).Run(); err != nil {
			_ = cmd.Process.Kill()
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("restic mount: %v\n%s", err, said.String())
		}
	}()
	buf := make([]byte, 4096)
	for text := ""; !strings.Contains(text, "Now serving"); {
		n, err := stdout.Read(buf)
		if text += string(buf[:n]); err != nil {
			t.Fatalf("restic mount: %v\n%s%s", err, text, said.String())
		}
	}
	go func() { // its last words must not block it
		for {
			if _, err := stdout.Read(buf); err != nil {
				return
			}
		}
	}()
	fn(dir)
}
