package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The plugin process is killed in some of the rounds, and started again.
func TestShortSoakWithKills(t *testing.T) {
	program := filepath.Join(t.TempDir(), "vmkeep-plugin")
	build := exec.Command("go", "build", "-o", program, "github.com/vmkeep/vmkeep/cmd/vmkeep-plugin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v: %s", err, out)
	}
	if err := run(t.Context(), options{machines: 4, rounds: 6, diskSize: 1 << 20, seed: 11, plugin: program, say: t.Logf}); err != nil {
		t.Fatal(err)
	}
}
