# Lets subpod make user namespaces where AppArmor restricts them
# (kernel.apparmor_restrict_unprivileged_userns=1, as on Ubuntu 24.04).
# Install as /etc/apparmor.d/subpod, then: apparmor_parser -r /etc/apparmor.d/subpod
abi <abi/4.0>,

include <tunables/global>

profile subpod "@SUBPOD@{,-node,-node-gvisor,-server}" flags=(unconfined) {
  userns,

  include if exists <local/subpod>
}
