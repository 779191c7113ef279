//go:build unix

package peers_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
)

// The servers are of use only if restic itself gets along with them as they are started here.
func TestResticWorksOnEveryPeer(t *testing.T) {
	for name, start := range map[string]func(testing.TB) peers.Peer{
		"local":       peers.Local,
		"rest-server": func(t testing.TB) peers.Peer { return peers.RestServer(t) },
		"append-only": func(t testing.TB) peers.Peer { return peers.RestServer(t, "--append-only") },
		"rclone":      func(t testing.TB) peers.Peer { return peers.Rclone(t) },
		"s3":          peers.S3,
		"sftp":        peers.SFTP,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			restic := peers.Restic(t, start(t))
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "hello"), []byte("world"), 0o600); err != nil {
				t.Fatal(err)
			}
			restic.Dir = dir
			restic.Run("init")
			restic.Run("backup", "hello")
			if got := restic.Run("dump", "latest", "hello"); got != "world" {
				t.Errorf("dump gives %q", got)
			}
			if res := restic.Try("dump", "latest", "missing"); res.Code == 0 || !strings.Contains(res.Stderr, "missing") {
				t.Errorf("dump of a missing file: %+v", res)
			}
		})
	}
}
