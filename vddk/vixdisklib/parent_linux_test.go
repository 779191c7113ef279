package vixdisklib_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib"
)

// childVariable tells the test binary to be a client that is killed: it names what the child opens.
const childVariable = "VMKEEP_VIXTEST_CHILD"

// child prepares access, opens a disk, begins to read, and says so; then it is killed.
func child(what string) {
	f := strings.Split(what, "|") // library, helper, state, path
	t := &vixdisklib.Transport{Dir: f[0], Helper: f[1], TempDir: f[2], Credentials: func(context.Context) (vixdisklib.Credentials, error) {
		return vixdisklib.Credentials{Server: "vc.example.com", User: "backup", Password: password, Thumbprint: thumbprint}, nil
	}}
	err := t.WithAccess(context.Background(), "vm-7", "vmkeep-test", func(ctx context.Context) error {
		d, err := t.Open(ctx, vddk.Spec{VM: "vm-7", Path: f[3], Write: true})
		if err != nil {
			return err
		}
		if _, err := d.WriteAt(make([]byte, 1<<20), 0); err != nil {
			return err
		}
		fmt.Println("ready")
		for {
			if _, err := d.ReadAt(make([]byte, 1<<20), 0); err != nil {
				return err
			}
		}
	})
	fmt.Println(err)
	os.Exit(1)
}

func TestKilledClientLeavesNothing(t *testing.T) {
	k := newKit(t, newest())
	spec, _ := k.disk(8 << 20)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+strings.Join([]string{k.Dir, k.Helper, k.TempDir, spec.Path}, "|"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	helpers := k.pids()
	if line != "ready\n" || len(helpers) != 2 { // one keeps access, one reads
		t.Errorf("the child says %q; helpers: %v", line, helpers)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	until(t, func() bool { return len(k.pids()) == 0 })
	if n := k.lib.Exits(); n != 2 {
		t.Errorf("helpers that ended in order: %d of 2", n)
	}
	if _, err := os.Stat(filepath.Join(k.Dir, "access-vm-7")); !os.IsNotExist(err) {
		t.Errorf("the machine is still held in place (%v)", err)
	}
	spec.Write = true
	k.open(spec) // and the disk is not locked
}
