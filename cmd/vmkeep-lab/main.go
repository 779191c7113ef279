// vmkeep-lab is an embedded vSphere as a program: machines whose disks have content, for demonstrations and for
// trying vmkeep, or anything else that speaks to vSphere, without one.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

const usage = `vmkeep-lab serves an embedded vSphere until it is told to stop (SIGINT, SIGTERM).

  vmkeep-lab --machines 3 --size 4G
  vmkeep-lab --disk web=root.img --disk web=data.img --disk db=db.img

It prints one line with the address, the certificate's thumbprint and the administrator's password, in the form
of shell variables that govc reads:

  eval "$(vmkeep-lab --machines 2 &)"

With --json it is one JSON object: message_type lab, url, username, password, thumbprint, nfc (address of the disk
server), pid.

An outside guest writes to live disks, and causes faults, over HTTP below /lab of the same address:

  curl -k -T part.img "https://127.0.0.1:8989/lab/vm1/2000?offset=1048576"
  curl -k "https://127.0.0.1:8989/lab"

Flags:
`

// run is main with its surroundings as arguments. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	opt, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "vmkeep-lab:", err)
		return 2
	}
	l, err := lab.Start(ctx, opt.Options)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "vmkeep-lab:", err)
		return 1
	}
	if err = tell(stdout, l, opt.json); err == nil {
		<-ctx.Done()
	}
	if err := errors.Join(err, l.Close()); err != nil {
		_, _ = fmt.Fprintln(stderr, "vmkeep-lab:", err)
		return 1
	}
	return 0
}

// reached is how a lab is reached.
type reached struct {
	MessageType string `json:"message_type"` // as vmkeep's
	URL         string `json:"url"`
	Username    string `json:"username"`
	Password    string `json:"password"`
	Thumbprint  string `json:"thumbprint"`
	NFC         string `json:"nfc"`
	PID         int    `json:"pid"`
}

// tell writes the line that says how the lab is reached.
func tell(w io.Writer, l *lab.Lab, asJSON bool) error {
	u := l.URL()
	password, _ := u.User.Password()
	r := reached{"lab", u.Scheme + "://" + u.Host + u.Path, u.User.Username(), password, l.Thumbprint(), l.NFC().Addr().String(), os.Getpid()}
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	_, err := fmt.Fprintf(w, "export GOVC_URL='%s' GOVC_USERNAME='%s' GOVC_PASSWORD='%s' GOVC_INSECURE=1 VMKEEP_THUMBPRINT='%s' VMKEEP_LAB_NFC='%s' VMKEEP_LAB_PID=%d\n",
		r.URL, r.Username, r.Password, r.Thumbprint, r.NFC, r.PID)
	return err
}

// options are the command line.
type options struct {
	lab.Options
	json bool // tell in JSON how the lab is reached
}

// parse reads the command line.
func parse(args []string, stderr io.Writer) (opt options, err error) {
	fs := flag.NewFlagSet("vmkeep-lab", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		_, _ = io.WriteString(stderr, usage)
		fs.PrintDefaults()
	}
	fs.StringVar(&opt.Address, "address", "127.0.0.1:8989", "`host:port` of the SDK, port 0: a free one")
	fs.StringVar(&opt.NFCAddress, "nfc-address", "127.0.0.1:0", "`host:port` of the disk server")
	fs.StringVar(&opt.Dir, "dir", "", "`directory` for the disks (default: a temporary one, removed at the end)")
	fs.StringVar(&opt.User, "user", "administrator@vsphere.local", "administrator's `name`")
	fs.StringVar(&opt.Password, "password", "lab", "administrator's `password`")
	fs.BoolVar(&opt.ESX, "esx", false, "be a single ESXi host instead of a vCenter")
	fs.IntVar(&opt.MaxAreas, "max-areas", 2000, "areas in one answer of QueryChangedDiskAreas")
	fs.BoolVar(&opt.json, "json", false, "print a JSON object instead of variables for a shell")
	tracking := fs.Bool("tracking", false, "changed-block tracking is on from the start")
	machines := fs.Int("machines", 0, "`number` of machines vm1, vm2 ... to make, each with one empty disk")
	size := fs.String("size", "1G", "`size` of their disks (K, M, G, T)")
	var images []string
	fs.Func("disk", "`NAME=FILE`: machine NAME gets a disk with the content of the raw image FILE; may repeat", func(s string) error {
		if name, file, ok := strings.Cut(s, "="); !ok || name == "" || file == "" {
			return errors.New("want NAME=FILE")
		}
		images = append(images, s)
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return opt, err
	}
	if fs.NArg() > 0 {
		return opt, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	bytes, err := parseSize(*size)
	if err != nil {
		return opt, err
	}
	for i := range *machines {
		opt.Machines = append(opt.Machines, lab.Machine{Name: fmt.Sprintf("vm%d", i+1), Tracking: *tracking, Disks: []lab.Disk{{Size: bytes}}})
	}
	for _, s := range images {
		name, file, _ := strings.Cut(s, "=")
		st, err := os.Stat(file)
		if err != nil {
			return opt, err
		}
		if !st.Mode().IsRegular() {
			return opt, fmt.Errorf("%s is not a file", file)
		}
		i := slices.IndexFunc(opt.Machines, func(m lab.Machine) bool { return m.Name == name })
		if i < 0 {
			opt.Machines = append(opt.Machines, lab.Machine{Name: name, Tracking: *tracking})
			i = len(opt.Machines) - 1
		}
		opt.Machines[i].Disks = append(opt.Machines[i].Disks, lab.Disk{Image: file})
	}
	return opt, nil
}

func parseSize(s string) (int64, error) {
	unit, number := int64(1), s
	for i, suffix := range []string{"K", "M", "G", "T"} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			unit, number = 1<<(10*(i+1)), n
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > (62<<40)/unit {
		return 0, fmt.Errorf("size %q: want a number with K, M, G or T, at most 62T", s)
	}
	return (n*unit + 511) &^ 511, nil
}
