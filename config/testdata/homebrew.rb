# What of Homebrew the formula uses, for a test without it: everything is written down, as
# JSON, and nothing is done but with files below the directory that is the first argument.
require "fileutils"
require "json"
require "pathname"

ROOT = Pathname.new(ARGV[0])
SEEN = Hash.new { |h, k| h[k] = [] }

class Pathname
  def install(files)
    SEEN["install"] << [to_s, Array(files).map(&:to_s)]
    FileUtils.mkdir_p(self)
    FileUtils.cp_r(Array(files), self)
  end
end

module Hardware
  class CPU
    def self.arm? = true
  end
end

class Formula
  %w[desc homepage license head depends_on].each do |word|
    define_singleton_method(word) { |*args, **more| SEEN[word] << [args, more] }
  end
  def self.test(&block) = SEEN["test"] << block.source_location[1]

  def buildpath = ROOT/"source"
  def opt_prefix = Pathname.new("/opt/homebrew/opt/applevm")
  def prefix = ROOT/"keg"
  def var = ROOT/"var"
  def odie(text) = abort(text)

  def with_env(env)
    old = env.keys.to_h { |k| [k, ENV[k]] }
    env.each { |k, v| ENV[k] = v }
    yield
  ensure
    old.each { |k, v| ENV[k] = v }
  end

  # The installation is real, the build is not.
  def system(*args)
    SEEN["system"] << args
    return unless args[0] == "scripts/install"

    Kernel.system({ "SYSTEM" => "Darwin" }, *args, chdir: ENV["CHECKOUT"]) || abort("#{args} failed")
  end
end

load ENV["FORMULA"]
f = Applevm.new
FileUtils.mkdir_p(f.buildpath)
f.install
f.post_install
SEEN["caveats"] << f.caveats
puts JSON.generate(SEEN)
