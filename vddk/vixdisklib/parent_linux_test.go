package vixdisklib_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib"
)

// childVariable tells the test binary to be a client that is killed: it names what the child opens.
const childVariable = "VMKEEP_VIXTEST_CHILD"

// childGrace is long enough for a library that does not hang to let go of everything.
const childGrace = 5 * time.Second

// child prepares access, opens a disk, begins to read, and says so; then it is killed.
func child(what string) {
	f := strings.Split(what, "|") // library, helper, state, path
	t := &vixdisklib.Transport{Dir: f[0], Helper: f[1], TempDir: f[2], Timeouts: vixdisklib.Timeouts{End: childGrace}, Credentials: func(context.Context) (vixdisklib.Credentials, error) {
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

// start starts a child that opens the disk at path, and returns what it says.
func (k *kit) start(path string) (cmd *exec.Cmd, said *bufio.Reader) {
	k.t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+strings.Join([]string{k.Dir, k.Helper, k.TempDir, path}, "|"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		k.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

// A helper whose library does not return from a call ends all the same when its client is gone.
func TestHelperOfAKilledClientEndsInMidCall(t *testing.T) {
	for _, call := range []string{"Open", "PrepareForAccess", "Close", "Wait"} {
		t.Run(call, func(t *testing.T) {
			k := newKit(t, newest())
			spec, _ := k.disk(8 << 20)
			fault := "fault " + call + " stuck"
			if call == "Wait" { // it waits for this
				fault = "fault Write stuck"
			}
			k.lib.Control(fault)
			cmd, said := k.start(spec.Path)
			if call == "Close" { // it comes when the helper gives everything back
				if line, err := said.ReadString('\n'); line != "ready\n" {
					t.Errorf("the child says %q (%v)", line, err)
				}
			} else {
				stuck := map[string]string{"Wait": "WriteAsync"}[call]
				if stuck == "" {
					stuck = call
				}
				until(t, func() bool { return slices.Contains(k.calls(), stuck) })
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			until(t, func() bool { return len(k.pids()) == 0 })
		})
	}
}

func TestKilledClientLeavesNothing(t *testing.T) {
	k := newKit(t, newest())
	spec, _ := k.disk(8 << 20)
	cmd, said := k.start(spec.Path)
	line, _ := said.ReadString('\n')
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
