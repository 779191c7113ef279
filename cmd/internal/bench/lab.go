package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// labProcess is a lab in a process of its own.
type labProcess struct {
	cmd    *exec.Cmd
	env    []string // that leads vmkeep to it
	url    string
	client *http.Client

	scratch string // directory that goes with it; may be empty
}

// startLab runs vmkeep-lab. Its disks lie below dir.
func (b *bench) startLab(dir string, args ...string) (*labProcess, error) {
	stamp("starting the lab")
	cmd := exec.Command(filepath.Join(b.bin, "vmkeep-lab"), append([]string{"--address", "127.0.0.1:0"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	l := &labProcess{cmd: cmd, client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}} // the lab's own certificate, on loopback
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(err, l.stop())
	}
	for _, m := range regexp.MustCompile(`([A-Z_]+)='?([^' \n]+)'?`).FindAllStringSubmatch(line, -1) {
		l.env = append(l.env, m[1]+"="+m[2])
		if m[1] == "GOVC_URL" {
			l.url = strings.TrimSuffix(m[2], "/sdk")
		}
	}
	return l, nil
}

func (l *labProcess) stop() error {
	l.client.CloseIdleConnections()
	err := errors.Join(l.cmd.Process.Signal(syscall.SIGTERM), l.cmd.Wait())
	if l.scratch != "" {
		err = errors.Join(err, os.RemoveAll(l.scratch))
	}
	return err
}

// write is a write of the guest to a machine's first disk.
func (l *labProcess) write(ctx context.Context, machine string, p []byte, off int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, fmt.Sprintf("%s/lab/%s/2000?offset=%d", l.url, machine, off), bytes.NewReader(p))
	if err != nil {
		return err
	}
	res, err := l.client.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("the lab answers %s to a guest's write", res.Status)
	}
	return nil
}
