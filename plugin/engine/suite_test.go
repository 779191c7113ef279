package engine_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/plugin/engine"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/vixtest"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// The suite of this package runs in several ways. One run has one way, which the variable below names: how the engine is
// reached, and over which transport it reads and writes disks.
//
//	VMKEEP_ENGINE_SUITE=in-process/nbdssl   as here, what "go test" does without the variable
//	VMKEEP_ENGINE_SUITE=plugin/hotadd       behind the plugin process
//
// "make test" runs the whole suite in process over nbdssl, with the race detector, and then behind the plugin process over
// each of the other transports, without it: what is different there are the wire and the transports, whose own packages
// are tested with the detector. So every test runs in process, behind the process, and over every transport, but for
// those that [exceptions] names, and the product of all is left out. It is to be had by naming plugin/nbdssl,
// in-process/vddk and so on.
const wayVariable = "VMKEEP_ENGINE_SUITE"

// way is one way to run the suite.
type way struct {
	process   bool   // behind the plugin process
	transport string // the name that a configuration gives it
}

func (w way) String() string {
	return map[bool]string{false: "in-process/", true: "plugin/"}[w.process] + w.transport
}

// transportsOfSuite are the transports that the suite runs over, each with words of what a point says of a disk that
// was read over it.
func transportsOfSuite() map[string]string {
	return map[string]string{"nbdssl": "nbdssl ", "nbd": "nbd ", "hotadd": "hotadd sd", "vddk": " through libvixDiskLib.so."}
}

func parseWay(s string) (way, error) {
	if s == "" {
		s = "in-process/nbdssl"
	}
	how, transport, _ := strings.Cut(s, "/")
	if _, ok := transportsOfSuite()[transport]; !ok || how != "in-process" && how != "plugin" {
		return way{}, fmt.Errorf("%s=%s: want in-process or plugin, a slash, and nbdssl, nbd, hotadd or vddk", wayVariable, s)
	}
	return way{process: how == "plugin", transport: transport}, nil
}

// chosen is the way of this run. TestMain has looked at it.
func chosen() way {
	w, err := parseWay(os.Getenv(wayVariable))
	if err != nil {
		panic(err)
	}
	return w
}

// exception says that a test does not run in some way.
type exception struct {
	leftOut func(way) bool
	why     string
}

// onlyOver leaves a test out behind the plugin process but over one transport, because what it shows is the same over each.
// These tests are spread over the transports, so that their runs take alike: what is about vSphere runs over hotadd, which
// does more there than the others. In process they run over all.
func onlyOver(transport string) func(way) bool {
	return func(w way) bool { return w.process && w.transport != transport }
}

// exceptions lists the tests that do not run in every way. Everything that is not here runs in all of them: what is about
// calls of the plugin, transports, faults, kills and what is left behind.
func exceptions() map[string]exception {
	notNFC := func(w way) bool { return w.transport != "nbdssl" && w.transport != "nbd" }
	clear := func(w way) bool { return w.transport != "nbdssl" }
	notLibrary := func(w way) bool { return w.transport != "vddk" }
	const library = "it is about VMware's library"
	const encrypted = "an encrypted disk is read over nbdssl: nbd is refused, the lab's proxy has no keys, and the fake library knows of none"
	overNBD, overHotAdd, overLibrary := onlyOver("nbd"), onlyOver("hotadd"), onlyOver("vddk")
	const believed = "whether change tracking is believed is decided before a disk is read"
	const chunks = "how a disk is cut is decided after it was read"
	const repository = "it is about how a repository is kept, and where"
	const points = "it is about what points hold and become, which nobody tells by the way that they were read"
	const snapshots = "it is about what is done on vSphere before a disk is read"
	return map[string]exception{
		"TestEncryptedMachine":                         {clear, encrypted},
		"TestEncryptedDisksAreNotReadInClear":          {clear, encrypted},
		"TestEncryptedDiskNeedsItsPrivilege":           {clear, encrypted},
		"TestEncryptedMachineIsRestoredInClear":        {clear, encrypted},
		"TestStateOfTheLibraryIsBesideTheJournals":     {notLibrary, library},
		"TestLibraryIsSetUpAsConfigured":               {notLibrary, library},
		"TestDisksOfAMachineShareAHelper":              {notLibrary, library},
		"TestWhatAKilledLibraryLeftAttachedIsDetached": {notLibrary, library},
		"TestWhatTheLibraryDoesNotDetachIsTold":        {notLibrary, library},
		"TestOneCutConnectionIsNoFailure":              {notNFC, "a network connection is cut; hot-added disks have none, and the library keeps its own to itself"},

		"TestTrustRulesOnAMachine":                     {overHotAdd, believed},
		"TestRevertIsNeverMissed":                      {overHotAdd, believed},
		"TestTrackingIsNotSwitchedOnUnderSnapshots":    {overHotAdd, believed},
		"TestTrackingIsResetOnRequest":                 {overHotAdd, believed},
		"TestLiesOfChangeTrackingAreFoundAndHealed":    {overHotAdd, believed},
		"TestOddAnswersOfChangeTrackingAreNotBelieved": {overHotAdd, believed},
		"TestRollbackDistrustsTrackingThatLied":        {overHotAdd, believed},
		"TestRollbackDistrustsTrackingAcrossSnapshots": {overHotAdd, believed},
		"TestEveryChunkingIsExact":                     {overLibrary, chunks},
		"TestChangedChunkingReadsInFullOnce":           {overLibrary, chunks},
		"TestChunkingOfTheNewestPointThatCanBeRead":    {overLibrary, chunks},
		"TestCareUnderEveryChunking":                   {overLibrary, chunks},
		"TestDebianGuestFromEveryStorageService":       {overNBD, repository},
		"TestRestoreFromOtherRepositories":             {overNBD, repository},
		"TestWeeklyCycleWithForgetAndPrune":            {overNBD, repository},
		"TestResticWorksOnPoints":                      {overNBD, repository},
		"TestPointCopiedByResticRestores":              {overNBD, repository},
		"TestWindowsGuestByDriveLetter":                {overLibrary, points},
		"TestWindowsGuestKeepsStreams":                 {overLibrary, points},
		"TestDirectoryFormatsAreWhatQEMUReads":         {overLibrary, points},
		"TestSplitImageOfSeveralParts":                 {overLibrary, points},
		"TestOVAIsImportedByGovc":                      {overLibrary, points},
		"TestOVFTellsEveryController":                  {overLibrary, points},
		"TestQuiesceLadder":                            {overHotAdd, snapshots},
		"TestQuiesceRules":                             {overHotAdd, snapshots},
		"TestSelectionIsEvaluatedAtRunTime":            {overHotAdd, snapshots},
	}
}

// skipException ends a test that does not run in the way of this run.
func skipException(t *testing.T) {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	if e, ok := exceptions()[name]; ok && e.leftOut(chosen()) {
		t.Skipf("not in %v: %s", chosen(), e.why)
	}
}

// waysOfMakeTest are the ways in which "make test" runs the suite.
func waysOfMakeTest(t *testing.T) []way {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^ENGINE_WAYS \?= (.*)$`).FindStringSubmatch(string(b))
	if line == nil {
		t.Fatal("the Makefile has no ENGINE_WAYS")
	}
	ways := []way{{transport: "nbdssl"}}
	for _, transport := range strings.Fields(line[1]) {
		ways = append(ways, way{process: true, transport: transport})
	}
	return ways
}

// Every exception is of a test that exists, gives its reason, and leaves a way of "make test" in which the test runs: also
// one behind the plugin, if the test is for a transport of those.
func TestExceptionsAreOfTests(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var tests []string
	for _, f := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				tests = append(tests, fn.Name.Name)
			}
		}
	}
	ways := waysOfMakeTest(t)
	for name, e := range exceptions() {
		runs, behind, could := false, false, false
		for _, w := range ways {
			ran := !e.leftOut(w)
			runs, behind = runs || ran, behind || ran && w.process
			could = could || w.process && !e.leftOut(way{transport: w.transport})
		}
		if !slices.Contains(tests, name) || e.why == "" || !runs || could && !behind {
			t.Errorf("%s: exists %v, runs in some way %v, behind the plugin %v, left out because %q", name, slices.Contains(tests, name), runs, behind, e.why)
		}
	}
}

// Where TestMain puts the programs that it builds, for the tests of this process and for its children.
const builtVariable = "VMKEEP_ENGINE_TEST_PROGRAMS"

// gcPercent lets garbage pile up, in percent of live memory: labs come and go, and nobody here looks at memory.
const gcPercent = 200

func TestMain(m *testing.M) {
	if file := os.Getenv(hostVariable); file != "" {
		if err := runHost(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	w, err := parseWay(os.Getenv(wayVariable))
	var dir string
	if err == nil {
		dir, err = os.MkdirTemp("", "vmkeep-engine-test-")
	}
	if err == nil {
		defer os.RemoveAll(dir)
		err = errors.Join(buildPrograms(dir, w), os.Setenv(builtVariable, dir),
			os.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))) // where the library's helper is looked for
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	debug.SetGCPercent(gcPercent)
	return m.Run()
}

// buildPrograms builds what the way of this run needs, as it is shipped: also when the tests run with the race detector.
func buildPrograms(dir string, w way) error {
	build := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "github.com/vmkeep/vmkeep/cmd/vmkeep-plugin", "github.com/vmkeep/vmkeep/cmd/vmkeep-vddk")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w: %s", err, out)
	}
	if w.transport == "vddk" {
		return vixtest.Build(dir, libraryVariant())
	}
	return nil
}

func libraryVariant() vixtest.Variant { return vixtest.Variant{Major: 8} }

func pluginBinary() string { return filepath.Join(os.Getenv(builtVariable), "vmkeep-plugin") }

// proxyName is the machine that the engine runs in where disks are hot-added. It is never backed up.
const proxyName = "proxy"

// reached is how a rig gets at its engine and at disks.
type reached struct {
	way
	hostRoot string           // of the proxy; empty: there is none
	library  *vixtest.Library // nil: it is not used
}

// prepare readies the vSphere for the way of this run.
func (w way) prepare(t *testing.T, opt *lab.Options) reached {
	t.Helper()
	r := reached{way: w}
	switch w.transport {
	case "hotadd":
		r.hostRoot = t.TempDir()
		opt.Machines = append(slices.Clone(opt.Machines), lab.Machine{Name: proxyName, Kernel: r.hostRoot, Disks: []lab.Disk{{Size: 1 << 20}}})
	case "vddk":
		r.library = vixtest.New(t, os.Getenv(builtVariable), libraryVariant())
		r.library.Quiet()
	}
	return r
}

// configure has a configuration use the way's transport. What cannot be written over HotAdd is written over NFC.
func (r reached) configure(c *plugin.Config, l *lab.Lab) {
	c.Transports = []string{r.transport}
	switch r.transport {
	case "hotadd":
		c.Transports = append(c.Transports, "nbdssl")
	case "vddk":
		c.VDDKDir = r.library.Dir
		r.library.Keep(l.LinkFile)
	}
}

// control says what goes wrong in VMware's library, where that is used; without lines nothing does.
func (r reached) control(lines ...string) {
	if r.library != nil {
		r.library.Control(lines...)
	}
}

// service is the engine, reached as the way says.
func (r reached) service(t *testing.T) plugin.Service {
	t.Helper()
	if r.process {
		p, err := r.load(t, pluginBinary())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Close(); err != nil {
				t.Error("close the plugin:", err)
			}
		})
		return p
	}
	e := engine.New(engine.Options{Version: "test", HostRoot: r.hostRoot})
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error("close the engine:", err)
		}
	})
	return e
}

// load starts a plugin process.
func (r reached) load(t *testing.T, program string) (*plugin.Loaded, error) {
	return plugin.Load(t.Context(), plugin.LoadOptions{Path: program, Host: "engine tests", Environment: r.environment()})
}

// environment spares a plugin process most of its collections, as TestMain does here, and names the root of a proxy.
func (r reached) environment() []string {
	env := []string{fmt.Sprintf("GOGC=%d", gcPercent)}
	if r.hostRoot != "" {
		env = append(env, "VMKEEP_HOST_ROOT="+r.hostRoot)
	}
	return env
}
