package rclone_test

import (
	"errors"
	"io"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/rclone"
	"github.com/vmkeep/vmkeep/repo/backend/rest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func config(t *testing.T, cfg rclone.Config) rest.Config {
	t.Helper()
	return rest.Config{URL: &url.URL{Scheme: "http", Host: "rclone", Path: "/"}, Transport: rclone.Transport(cfg)}
}

func TestRcloneOnItsStandardInputKeepsTheGuarantees(t *testing.T) {
	program := peers.System(t, "rclone", "rclone")
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		b, err := rest.Create(t.Context(), config(t, rclone.Config{Program: program, Remote: ":local:" + filepath.Join(t.TempDir(), "repo")}))
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

func TestWhatRcloneSaysIsInTheError(t *testing.T) {
	program := peers.System(t, "rclone", "rclone")
	for name, test := range map[string]struct {
		cfg  rclone.Config
		text string
	}{
		"remote":  {rclone.Config{Program: program, Remote: "no-such-remote:path"}, "no-such-remote"},
		"program": {rclone.Config{Program: "/no/such/rclone", Remote: "r:p"}, "install it"},
		"args":    {rclone.Config{Program: program, Args: []string{"serve", "restic", "--no-such-flag"}, Remote: "r:p"}, "no-such-flag"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := rest.Open(config(t, test.cfg))
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			err = b.Load(t.Context(), backend.Handle{Type: restic.ConfigFile}, 0, 0, func(io.Reader) error { return nil })
			if err == nil || errors.Is(err, backend.ErrNotExist) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("Load: %v", err)
			}
		})
	}
}
