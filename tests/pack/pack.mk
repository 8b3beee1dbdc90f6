# Installing, packages and releases; read by the Makefile. All is made of the same tree:
# what tests/pack/install.sh installs.

# PREFIX and DESTDIR come to install.sh by the environment, where make puts what its caller
# has set: quotes and spaces in them are nothing special.
# The time of everything that is made: the commit's, or that of the file VERSION.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y VERSION)
DIST    := dist
ARCHES  := amd64 arm64
# The architectures of "make deb" and "make rpm"; "make release" makes all.
ARCH    ?= $(shell $(GO) env GOARCH)
PACKER  := .cache/bin/pack-$(shell cat tests/pack/go.mod tests/pack/*.go 2>/dev/null | cksum | cut -d' ' -f1)
PROGRAMS := $(notdir $(BINARIES))
export SOURCE_DATE_EPOCH

.PHONY: install
install: build ## Install into PREFIX (/usr/local), below DESTDIR
	@tests/pack/install.sh install bin

.PHONY: uninstall
uninstall: bin/subpod ## Take away what "make install" has installed
	@tests/pack/install.sh uninstall bin

$(PACKER): tests/pack/go.mod tests/pack/go.sum $(wildcard tests/pack/*.go)
	@mkdir -p $(@D) && rm -f .cache/bin/pack-*
	cd tests/pack && CGO_ENABLED=0 ../go.sh build -buildvcs=false -trimpath -ldflags "-s -w" -o ../../$@ .

# What is packed is built again when the version has changed, also by a commit alone.
bin/version: FORCE
	@mkdir -p bin; echo '$(VERSION)' | cmp -s - $@ || echo '$(VERSION)' >$@
.PHONY: FORCE
FORCE:

# The programs of each architecture, in bin/ARCH.
$(foreach a,$(ARCHES),$(PROGRAMS:%=bin/$(a)/%)): $(SOURCES) bin/version
	GOARCH=$(word 2,$(subst /, ,$@)) $(BUILD) -o $@ ./cmd/$(@F)

STAGE = $(DIST)/stage
# It writes manual pages and the like, so it has to run here.
TOOL  = bin/$(shell $(GO) env GOHOSTARCH)/subpod
PACK  = TOOL=$(TOOL) $(PACKER)
WITH  = -version $(VERSION) -epoch $(SOURCE_DATE_EPOCH) -scripts tests/pack/scripts

# stage,ARCH,PREFIX,DIRECTORY: the tree, with the licences of what is linked in.
define stage
	@rm -rf $(STAGE)/$(3)-$(1) && mkdir -p $(STAGE)/$(3)-$(1)
	@TOOL=$(TOOL) PREFIX=$(2) DESTDIR=$(STAGE)/$(3)-$(1) tests/pack/install.sh install bin/$(1)
	@GO=$(GO) tests/pack/licenses.sh bin/$(1) $(STAGE)/$(3)-$(1)$(if $(filter /,$(2)),,$(2))/share/doc/subpod
endef

define arch
.PHONY: stage-$(1)
stage-$(1): $(TOOL) $(PACKER) $(PROGRAMS:%=bin/$(1)/%)
	$$(call stage,$(1),/usr,package)

.PHONY: deb-$(1) rpm-$(1) archive-$(1)
deb-$(1): stage-$(1)
	@$$(PACK) deb $$(WITH) -arch $(1) -stage $(STAGE)/package-$(1) -out $(DIST)

rpm-$(1): stage-$(1)
	@$$(PACK) rpm $$(WITH) -arch $(1) -stage $(STAGE)/package-$(1) -out $(DIST)

# For any place: "subpod setup" writes units for where it was unpacked.
archive-$(1): $(TOOL) $(PACKER) $(PROGRAMS:%=bin/$(1)/%)
	$$(call stage,$(1),/,archive)
	@rm -rf $(STAGE)/archive-$(1)/lib
	@$$(PACK) archive $$(WITH) -arch $(1) -stage $(STAGE)/archive-$(1) -out $(DIST)
	@$$(PACK) sbom $$(WITH) -arch $(1) -stage $(STAGE)/archive-$(1) -out $(DIST)
endef
$(foreach a,$(ARCHES),$(eval $(call arch,$(a))))

.PHONY: deb
deb: deb-$(ARCH) ## Make a Debian package in dist (ARCH=arm64)

.PHONY: rpm
rpm: rpm-$(ARCH) ## Make an RPM package in dist (ARCH=arm64)

.PHONY: release
release: ## Archives, packages, bills of materials and SHA256SUMS in dist, for amd64 and arm64
	@rm -rf $(DIST)
	@$(MAKE) --no-print-directory $(foreach a,$(ARCHES),archive-$(a) deb-$(a) rpm-$(a))
	@rm -rf $(STAGE)
	@$(PACKER) sums $(WITH) -out $(DIST)

.PHONY: test-pack
test-pack: ## Packages: contents, modes, no path of this machine, the same bytes twice (CHECK="-long": built twice, lintian)
	@rm -rf $(DIST)
	@$(MAKE) --no-print-directory deb rpm archive-$(ARCH)
	cd tests/pack && CGO_ENABLED=0 ../go.sh test -count=1 . -args -dist ../../$(DIST) -arch $(ARCH) -tool $(CURDIR)/$(TOOL) $(CHECK)
