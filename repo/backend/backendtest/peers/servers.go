//go:build unix

package peers

import (
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// RestServer starts restic's rest-server. args are its flags, such as --append-only, --htpasswd-file or --tls;
// without an htpasswd file everybody may come in. The location names the repository "repo" in it.
func RestServer(t testing.TB, args ...string) Peer {
	t.Helper()
	args = append([]string{"--listen", "127.0.0.1:0", "--path", t.TempDir()}, args...)
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--htpasswd-file") }) {
		args = append(args, "--no-auth")
	}
	address, ok := start(t, exec.Command(Binary(t, "rest-server"), args...), regexp.MustCompile(`start server on (\S+)`), "")
	if !ok {
		t.Fatal("rest-server did not start")
	}
	if strings.HasPrefix(address, "/") { // --listen unix:/path
		return Peer{Location: "rest:http+unix://" + address + ":/repo/"}
	}
	scheme := "http"
	if slices.Contains(args, "--tls") {
		scheme = "https"
	}
	return Peer{Location: "rest:" + scheme + "://" + address + "/repo/"}
}

// Rclone starts `rclone serve restic`, the other server that speaks restic's protocol.
func Rclone(t testing.TB, args ...string) Peer {
	t.Helper()
	rclone := System(t, "rclone", "rclone")
	args = append([]string{"serve", "restic", "--addr", "127.0.0.1:0", "--config", filepath.Join(t.TempDir(), "rclone.conf")}, args...)
	cmd := exec.Command(rclone, append(args, t.TempDir())...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	address, ok := start(t, cmd, regexp.MustCompile(`REST API on (\S+)`), "")
	if !ok {
		t.Fatal("rclone did not start")
	}
	return Peer{Location: "rest:" + strings.TrimSuffix(address, "/") + "/repo/"}
}

// Credentials of the S3 server.
const (
	AccessKey = "vmkeep-test-access"
	SecretKey = "vmkeep-test-secret-key"
)

// S3 starts versitygw over a directory. The bucket of the location does not exist yet; it is made when a
// repository is created there.
func S3(t testing.TB) Peer {
	t.Helper()
	gateway, dir := Binary(t, "versitygw"), t.TempDir()
	for _, sub := range []string{"objects", "meta", "versions"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	port := onFreePort(t, func(port string) *exec.Cmd {
		// The sidecar keeps metadata where the file system has no extended attributes.
		cmd := exec.Command(gateway, "--port", "127.0.0.1:"+port, "--quiet", "posix", "--sidecar", filepath.Join(dir, "meta"),
			"--versioning-dir", filepath.Join(dir, "versions"), filepath.Join(dir, "objects"))
		cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
		cmd.Dir = dir
		return cmd
	}, nil)
	return Peer{
		Location: "s3:http://127.0.0.1:" + port + "/" + freshName("bucket-") + "/some/prefix",
		Env:      map[string]string{"AWS_ACCESS_KEY_ID": AccessKey, "AWS_SECRET_ACCESS_KEY": SecretKey},
	}
}

// SFTP starts OpenSSH's server for the current user with a key made for this test. The location's options carry
// the client's arguments. The repository's directory does not exist yet.
func SFTP(t testing.TB) Peer {
	t.Helper()
	sshd, keygen := System(t, "/usr/sbin/sshd", "openssh-server"), System(t, "ssh-keygen", "openssh-client")
	System(t, "ssh", "openssh-client")
	dir := t.TempDir()
	hostKey, userKey := filepath.Join(dir, "host"), filepath.Join(dir, "user")
	for _, key := range []string{hostKey, userKey} {
		run(t, keygen, "-q", "-t", "ed25519", "-N", "", "-f", key)
	}
	public, err := os.ReadFile(userKey + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	authorized := write(t, filepath.Join(dir, "authorized"), public)
	if os.Geteuid() == 0 {
		// sshd's place to separate privileges; the package leaves making it to systemd.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	port := onFreePort(t, func(port string) *exec.Cmd {
		config := write(t, filepath.Join(dir, "sshd_config"), []byte(strings.Join([]string{
			"ListenAddress 127.0.0.1", "Port " + port, "HostKey " + hostKey, "PidFile none", "AuthorizedKeysFile " + authorized,
			"StrictModes no", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password",
			"MaxStartups 100", "Subsystem sftp internal-sftp", "",
		}, "\n")))
		return exec.Command(sshd, "-D", "-e", "-f", config)
	}, regexp.MustCompile(`(Server listening) on`))
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	hostPublic, err := os.ReadFile(hostKey + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	known := write(t, filepath.Join(dir, "known_hosts"), []byte("[127.0.0.1]:"+port+" "+string(hostPublic)))
	location := url.URL{Scheme: "sftp", User: url.User(me.Username), Host: "127.0.0.1:" + port, Path: "/" + filepath.Join(t.TempDir(), "repository")}
	return Peer{
		Location: location.String(),
		Options: map[string]string{"sftp.args": strings.Join([]string{
			"-F", "none", "-i", userKey, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=" + known,
		}, " ")},
	}
}
