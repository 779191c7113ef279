//go:build unix

package main

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestLabInJSON: --json before "lab", or after it, makes the lab's one line an object with all that it tells a shell.
func TestLabInJSON(t *testing.T) {
	for _, args := range [][]string{{"--json", "lab"}, {"lab", "--json"}} {
		h := home{t: t, dir: t.TempDir(), more: []string{"PATH=" + os.Getenv(programVariable) + string(os.PathListSeparator) + os.Getenv("PATH")}}
		cmd := h.command(append(args, "--address", "127.0.0.1:0", "--machines", "1", "--size", "1M", "--password", "it's")...)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		d := json.NewDecoder(out)
		d.DisallowUnknownFields()
		var got struct {
			MessageType                              string `json:"message_type"`
			URL, Username, Password, Thumbprint, NFC string
			PID                                      int
		}
		if err := d.Decode(&got); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		if host, _, err := net.SplitHostPort(got.NFC); err != nil || host != "127.0.0.1" || got.MessageType != "lab" || !strings.HasPrefix(got.URL, "https://127.0.0.1:") ||
			got.Username != "administrator@vsphere.local" || got.Password != "it's" || len(got.Thumbprint) < 40 || got.PID == 0 || got.PID == cmd.Process.Pid {
			t.Errorf("%v: %+v, %v", args, got, err)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if more, err := io.ReadAll(io.MultiReader(d.Buffered(), out)); err != nil || strings.TrimSpace(string(more)) != "" {
			t.Errorf("%v: then %q, %v", args, more, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
}
