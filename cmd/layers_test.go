// Package cmd_test holds the architecture as a test.
package cmd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/vmkeep/vmkeep/"

// layer says what packages may import. A pattern is a package, or with a trailing "/..." the packages below it (and
// not itself). The most specific pattern that fits a package is its rule; a package without a rule fails the test:
// think about its place, and add a line here with the reason.
type layer struct {
	packages string
	may      []string // of this module
	why      string
}

func layers() []layer {
	return []layer{
		{"chunker/extent", nil, "byte ranges are below everything"},
		{"chunker", []string{"chunker/extent"}, "cutting needs ranges; what is done with the chunks is not its business"},

		{"repo/restic", []string{"chunker", "repo/internal/sha256x2"}, "the format as pure values; of the chunker only the polynomial"},
		{"repo/internal/crypto", nil, "cryptography can be judged alone"},
		{"repo/internal/sha256x2", nil, "a hash is a function of bytes"},
		{"repo/internal/index", []string{"repo/restic"}, "a map from the format's names to the format's places"},
		{"repo/backend", []string{"repo/restic"}, "files are named by the format"},
		{"repo/backend/...", []string{"repo/backend", "repo/restic"}, "a service hides behind one interface, and knows no other service"},
		{"repo/backend/location", []string{"repo/backend", "repo/backend/...", "repo/restic"}, "the one place that knows all services, from their URLs"},
		{"repo", []string{"repo/...", "chunker", "chunker/extent"}, "a repository knows neither vSphere nor disks"},

		{"vddk", []string{"chunker/extent"}, "the vocabulary of disks"},
		{"vddk/...", []string{"vddk", "chunker/extent"}, "a transport hides behind one interface, and knows no other transport"},
		{"vddk/nfc", []string{"vddk", "vddk/nfc/internal/...", "chunker/extent"}, "the client and its frames"},
		{"vddk/nfc/internal/...", nil, "frames are values"},
		{"vddk/nfc/nfctest", []string{"vddk", "vddk/nfc", "vddk/nfc/internal/...", "chunker/extent"}, "the server double speaks with the client's codec"},
		{"vddk/vixdisklib", []string{"vddk", "vddk/vixdisklib/...", "chunker/extent"}, "the client of the helper process"},
		{"vddk/vixdisklib/...", []string{"vddk", "vddk/vixdisklib", "vddk/vixdisklib/...", "chunker/extent"}, "the helper's side of the same protocol"},
		{"vddk/mount", []string{"vddk", "vddk/mount/...", "chunker/extent"}, "guest file systems come from bytes alone"},
		{"vddk/mount/...", []string{"vddk/mount/...", "chunker/extent"}, "a reader of a file system knows neither transports nor repositories"},

		{"vsphere", []string{"chunker/extent"}, "vSphere is asked about disks; others read them"},
		{"vsphere/lab", []string{"vsphere/lab/...", "vddk", "vddk/nfc", "vddk/nfc/nfctest", "chunker/extent"}, "the lab is the other side: it must not share the client's mistakes"},
		{"vsphere/lab/...", []string{"chunker/extent"}, "content of the lab's disks"},

		{"plugin", []string{"plugin/internal/pb"}, "hosts import it: it brings the contract and the wire, nothing else"},
		{"plugin/internal/pb", nil, "generated"},
		{"plugin/engine", []string{"plugin", "chunker", "chunker/extent", "vsphere", "vddk", "vddk/mount", "vddk/mount/...", "vddk/nfc", "vddk/vixdisklib", "vddk/hotadd", "vddk/vmdk",
			"repo", "repo/restic", "repo/backend", "repo/backend/location"}, "the only package that knows all the libraries"},
		{"plugin/engine/...", []string{"plugin", "plugin/engine", "chunker", "chunker/extent", "vsphere", "vsphere/lab", "vddk", "vddk/...", "repo", "repo/..."}, "parts and test rigs of the engine"},

		{"cmd/internal/build", nil, "tells a version"},
		{"cmd/internal/...", []string{"plugin", "plugin/engine", "vsphere/...", "vddk", "vddk/...", "repo", "repo/...", "chunker", "chunker/extent", "cmd/internal/..."}, "demonstrations and benchmarks drive everything"},
		{"cmd/vmkeep", []string{"plugin", "cmd/internal/build"}, "a host needs the contract only; that it can live with it is the proof"},
		{"cmd/vmkeep-plugin", []string{"plugin", "plugin/engine", "cmd/internal/build"}, "the engine behind the wire"},
		{"cmd/vmkeep-check", []string{"repo", "repo/...", "cmd/internal/build"}, "a check must not depend on what wrote the repository"},
		{"cmd/vmkeep-lab", []string{"vsphere/lab", "vsphere/lab/...", "cmd/internal/build"}, "the lab as a program"},
		{"cmd/vmkeep-vddk", []string{"vddk", "vddk/vixdisklib", "vddk/vixdisklib/...", "chunker/extent", "cmd/internal/build"}, "the only program that loads VMware's library; it contains nothing that must survive it"},
	}
}

// foreign says who may import modules of others that are worth a wall. All else is free.
func foreign() []layer {
	return []layer{
		{"github.com/vmware/govmomi", []string{"vsphere", "vsphere/lab", "vsphere/lab/...", "cmd/internal/soak"}, "vSphere's types end at package vsphere; the lab is vSphere, and the soak its fate: it words its faults"},
		{"github.com/hashicorp/go-plugin", []string{"plugin"}, "how processes are started is the glue's secret"},
		{"google.golang.org/grpc", []string{"plugin", "plugin/internal/pb"}, "the wire ends at the contract"},
		{"google.golang.org/protobuf", []string{"plugin", "plugin/internal/pb"}, "the wire ends at the contract"},
		{"github.com/minio/minio-go", []string{"repo/backend/s3", "repo/backend/location"}, "a vendor's SDK is hidden behind its backend; location gathers credentials for it"},
		{"github.com/pkg/sftp", []string{"repo/backend/sftp"}, "a vendor's SDK is hidden behind its backend"},
		{"github.com/ebitengine/purego", []string{"vddk/vixdisklib/...", "cmd/vmkeep-vddk"}, "foreign code is loaded in the helper process only"},
		{"github.com/spf13/cobra", []string{"cmd/..."}, "command lines belong to programs"},
		{"github.com/restic/chunker", []string{"chunker"}, "of it only the mathematics of polynomials; the cuts are our own"},
		{"testing", []string{"repo/backend/backendtest", "repo/backend/backendtest/...", "vddk/disktest", "vddk/mount/mounttest", "vddk/nfc/nfctest", "vddk/vixdisklib/vixtest", "plugin/engine/..."}, "suites are for tests"},
	}
}

type pkg struct {
	ImportPath string
	Dir        string
	Imports    []string
	CgoFiles   []string
	GoFiles    []string
}

// graph lists the packages of the module as they are built for an operating system.
func graph(t *testing.T, goos string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,CgoFiles,GoFiles", "./...")
	cmd.Dir = ".."
	cmd.Env = append(cmd.Environ(), "GOOS="+goos, "CGO_ENABLED=1")
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, problems.String())
	}
	var all []pkg
	for d := json.NewDecoder(&out); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 20 {
		t.Fatalf("only %d packages are listed", len(all))
	}
	return all
}

// fits reports whether a package is meant by a pattern.
func fits(name, pattern string) bool {
	if below, ok := strings.CutSuffix(pattern, "/..."); ok {
		return strings.HasPrefix(name, below+"/")
	}
	return name == pattern
}

func anyFits(name string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return fits(name, p) })
}

// rule is the most specific rule for a package: its own, else the one with the longest pattern.
func rule(name string, rules []layer) (best layer, ok bool) {
	for _, r := range rules {
		if !fits(name, r.packages) {
			continue
		}
		if r.packages == name {
			return r, true
		}
		if !ok || len(r.packages) > len(best.packages) {
			best, ok = r, true
		}
	}
	return best, ok
}

// TestLayers holds the imports of production code to the table, on every system that is built for.
func TestLayers(t *testing.T) {
	for _, goos := range []string{"linux", "windows", "darwin"} {
		t.Run(goos, func(t *testing.T) {
			t.Parallel()
			for _, p := range graph(t, goos) {
				name, ours := strings.CutPrefix(p.ImportPath, module)
				if !ours || len(p.GoFiles)+len(p.CgoFiles) == 0 {
					continue
				}
				if len(p.CgoFiles) > 0 {
					t.Errorf("%s uses cgo (%v): programs must be static and build everywhere", name, p.CgoFiles)
				}
				r, ok := rule(name, layers())
				if !ok {
					t.Errorf("%s has no place among the layers: add a rule with its reason", name)
					continue
				}
				for _, path := range p.Imports {
					if dep, ours := strings.CutPrefix(path, module); ours {
						if !anyFits(dep, r.may) {
							t.Errorf("%s must not import %s: %s", name, dep, r.why)
						}
						continue
					}
					for _, f := range foreign() {
						if (path == f.packages || strings.HasPrefix(path, f.packages+"/")) && !anyFits(name, f.may) {
							t.Errorf("%s must not import %s: %s", name, path, f.why)
						}
					}
				}
			}
		})
	}
}

// TestNoInit: nothing happens before main, and nothing registers itself.
func TestNoInit(t *testing.T) {
	for _, p := range graph(t, "linux") {
		if p.ImportPath == module+"plugin/internal/pb" {
			continue // the generator's habit
		}
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
					t.Errorf("%s/%s has an init function", p.ImportPath, name)
				}
			}
		}
	}
}
