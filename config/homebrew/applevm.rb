# Homebrew's formula. There is no release yet, so it builds the main branch:
#
#   brew install --HEAD --formula ./config/homebrew/applevm.rb
#
# A guest image takes Linux to build (`make guest-all`): HOMEBREW_APPLEVM_GUEST names the
# directory that holds it, with its kernel, initramfs and image.json.
class Applevm < Formula
  desc "Runs each container in a virtual machine of its own, for containerd"
  homepage "https://github.com/applevm/applevm"
  license "Apache-2.0"
  head "https://github.com/applevm/applevm.git", branch: "main"

  depends_on "go" => :build
  depends_on macos: :ventura

  def install
    guest = ENV["HOMEBREW_APPLEVM_GUEST"]
    odie "set HOMEBREW_APPLEVM_GUEST to the directory of a guest image, built on Linux by make guest-all" if guest.to_s.empty?

    arch = Hardware::CPU.arm? ? "arm64" : "amd64"
    (buildpath/"build/guest/#{arch}").install Dir["#{guest}/*"]
    system "make", "build", "tools", "DEPS=true"

    # What belongs to the formula lies below opt, whose path stays; images and
    # containers lie in Homebrew's var, which an upgrade leaves alone.
    stage = buildpath/"stage"
    with_env("DESTDIR" => stage.to_s, "PREFIX" => opt_prefix.to_s, "VAR" => var.to_s, "OWNER" => ENV["USER"]) do
      system "scripts/install", "install"
    end
    prefix.install Dir["#{stage}#{opt_prefix}/*"]
    (prefix/"launchd").install Dir["#{stage}/Library/LaunchDaemons/*"]
  end

  def post_install
    %w[lib/applevm lib/containerd lib/nerdctl run/applevm log/applevm].each { |d| (var/d).mkpath }
  end

  def caveats
    <<~EOS
      Start containerd and applevm-snapshotter, as you and at each start of macOS:
        sudo cp #{opt_prefix}/launchd/*.plist /Library/LaunchDaemons/
        for s in directories snapshotter containerd; do
          sudo launchctl bootstrap system /Library/LaunchDaemons/dev.applevm.$s.plist
        done
      and put this into ~/.zshrc:
        . #{opt_prefix}/share/applevm/applevm.sh
    EOS
  end

  test do
    assert_match "snapshotter.sock", shell_output("#{bin}/applevm-snapshotter config containerd")
  end
end
