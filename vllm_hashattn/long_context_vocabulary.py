# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Words and filler text for generated long-context tasks."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

_ADJECTIVES = """
able amber ancient autumn basic bitter blank blue bold brave brief bright broad broken
brown busy calm careful cheap civil clean clear clever coastal cold common copper cosy
crisp crystal curious curved damp dark deep dense distant double dry dusty eager early
eastern easy empty endless exact faint fair faithful famous fast fertile final fine firm
flat formal fragile free fresh friendly frosty frozen full gentle giant golden grand
green grey happy hard heavy hidden hollow honest humble hungry icy idle inner ivory
jolly keen kind large late lazy level light lively local lonely long loud loyal lucky
marble mellow mild misty modern modest narrow neat noble noisy northern odd old open
orange outer pale patient perfect plain polite proud public pure purple quick quiet
rapid rare ready red remote rich ripe rocky rough round royal rural rusty sacred salty
scarlet secret sharp shiny short shy silent silver simple sleepy slender slow small
smooth snowy soft solid southern spare square steady steep stern still stony strange
strict strong sturdy subtle sudden sunny sweet swift tall tame tender thick thin tidy
tiny tired tough tranquil urban useful vacant vast velvet violet warm wealthy western
white wide wild windy winter wise wooden woollen yellow young
"""
_NOUNS = """
acorn actor airport alley almond alphabet anchor ankle antler anvil apple apron arch
archer argument arrow artist atlas attic avenue award badge badger baker balcony ballad
balloon bamboo banana banner barley barn baron barrel basin basket bath battery beach
beacon beaver bedroom beetle belfry bell belt bench berry bicycle birch biscuit blanket
blossom board boat bonfire bookcase border bottle boulder bowl bracelet branch bread
breeze brick bridge broom brother brush bucket buffalo building bundle butcher butter
button cabbage cabin cactus cake calendar camel camera canal candle canoe canvas canyon
captain caravan cardigan carpenter carpet carriage carrot castle catalogue cathedral
cattle cavern ceiling cellar cello cement century cereal chain chair chalk champion
channel chapel chapter charcoal cheese cherry chest chestnut chicken chief chimney
chorus cider circle circus citizen clarinet clay cliff climate clinic cloak clock cloth
cloud clover coach coast cobweb coconut coffee collar college colony column comet
compass concert cookie coral corner cottage cotton council counter country courtyard
cousin cradle crane crater crayon creek cricket crown cuckoo cupboard current curtain
cushion custom cyclist dairy daisy dancer daughter dawn debate deer delta dentist desert
desk dialogue diamond diary dinner diploma doctor dolphin donkey door dragon drawer
dream drummer duchess duck dungeon eagle easel echo eclipse elbow elephant elevator
ember emperor empire engine envelope episode errand essay estate evening evergreen
exhibit fabric factory falcon family farmer feather fence fern ferry festival fiddle
field figure finger fireplace fisher flag flame flannel flask flour flower flute forest
forge fork fortress fossil fountain fox freight friend frog frontier fruit funnel
furnace galaxy gallery gallop garage garden garlic garment gate gazelle geyser ghost
ginger giraffe glacier glass glove goat goblet goose gorge grain granite grape grass
gravel guest guide guitar gull gutter hammer hammock handle harbour hare harp harvest
hatchet hawk hazel heather hedge heel helmet herald herb hermit heron highway hill hinge
history holiday honey hood horizon hornet horse hospital hostel hotel hound hunter
hurdle husband hyacinth iceberg icicle igloo impulse income infant ink insect interval
iron island ivy jacket jaguar jasmine jelly jewel jigsaw journal journey judge juggler
juice jungle juniper justice kangaroo kennel kettle keyboard kidney kingdom kitchen kite
kitten knight knot koala label labour ladder lagoon lake lamp language lantern lark
laundry laurel lava lawn lawyer leaf leather lecture legend lemon leopard letter lettuce
library lighthouse lily lime linen lion lizard llama lobster locket locomotive lodge
lorry lotus lumber lunch lynx machine magazine magnet magpie mailbox mallet mandolin
mango manor mansion mantle manual maple march margin market marsh martin mask mason
mattress meadow meal medal melody melon member memory merchant mercury message meteor
method midnight migrant mile milk mill mineral minister mint minute mirror mitten moat
monarch money monitor monk month monument moon moose morning mosaic moss moth motor
mountain mouse moustache mule muscle museum mushroom music mustard napkin narrator
nation nectar neighbour nephew nest nettle nickel niece night noodle notebook novel
nurse nutmeg oasis oath oatmeal object oboe ocean office olive omelette onion opera
orbit orchard orchestra orchid organ ostrich otter outfit oven owl oyster paddle page
painter palace palm pancake panda panel pantry paper parade parcel park parrot parsley
pasta pastry pasture path patio patrol pattern pavement peach peacock peanut pear pearl
pebble pedal pelican pencil penguin pension pepper perfume petal petrol pheasant photo
physics piano picnic picture pigeon pillar pillow pilot pine pioneer pirate planet plank
plate platform plaza plough plum pocket poem poet pond pony poplar poppy porch port
portrait postcard potato pottery powder prairie present priest prince printer prism
prize problem profile project promise province pudding pulley pump pumpkin puppet purse
puzzle pyramid quail quarry quarter queen quest quilt quince rabbit raccoon racket radar
radio radish raft rail rainbow raisin ranch raspberry raven ravine razor recipe record
reef region reindeer relic remedy report reptile rescue reserve resort reward rhythm
ribbon rice riddle rider ridge rifle ring river roast robin robot rocket roof rooster
rope rose route rudder ruler runner saddle sailor salad salmon salute sample sand sandal
sapphire satin saucer sausage scarf scholar school science scissors scooter scout screen
sculptor seagull season secretary seed senate sentence sermon server sesame shadow shaft
shark shed sheep shelf shell shelter shepherd sheriff shield ship shirt shoe shop shore
shoulder shovel shower shrimp shrub signal silk singer sister skate skeleton sketch
skirt sky sled sleeve slipper slope smith smoke snail snow soap socket sofa soldier
sonnet soup spade sparrow speaker spear sphere spice spider spinach spiral sponge spoon
spruce squirrel stable stadium staff stage staircase stallion stamp station statue steam
steel stem stew stone stool stork storm stove strap straw stream street string student
studio submarine subway sugar suit summer summit sunrise surgeon surname swallow swamp
swan sweater symbol symphony syrup table tablet tailor talent tank tapestry target
tavern teacher teapot telescope temple tenant tennis tent terrace textbook theatre
theory thimble thistle thread throne thumb thunder ticket tiger timber toast tobacco
toffee tomato tongue tool tooth torch tortoise tower town tractor trader traffic trail
train treaty tree triangle tribe trolley trophy trouser trumpet trunk tulip tunnel
turban turkey turnip turtle twig twilight typist umbrella uncle unicorn uniform universe
valley vanilla vase vehicle veil verse vessel veteran vicar village vine vinegar violin
visitor voice volcano volume voyage vulture wagon waist waiter wallet walnut walrus
wardrobe warehouse wasp water wave weasel weather weaver wedding weekend whale wharf
wheat wheel whisker whistle widow willow window wing witness wizard wolf wood wool
workshop world wreath writer yacht yard yoghurt zebra zenith zigzag
"""
ADJECTIVES: tuple[str, ...] = tuple(_ADJECTIVES.split())
NOUNS: tuple[str, ...] = tuple(_NOUNS.split())

# Statements that are true of nothing, name nothing twice and hold no numbers.
_SENTENCES = (
    "The {0} {1} stood between the {2} and the {3}, as it had for years.",
    "Nobody in the {3} remembered who had brought the {0} {1} there.",
    "Behind the {2} there was a {4} {3}, and next to it the {0} {1}.",
    "People say that the {1} is never as {0} as the {2}.",
    "In the morning the {1} looked {0}, and in the evening it looked {4}.",
    "They spoke about the {2} for a while and then about the {0} {1}.",
    "It takes patience to carry the {0} {1} from the {2} to the {3}.",
    "The {1} was {0}, but the {2} was {4}, and that settled the matter.",
    "When the rain stopped, the {1} near the {2} seemed more {0} than before.",
    "Some prefer the {0} {1}, others the {4} {2}.",
    "A letter arrived that mentioned the {1}, the {2} and the {0} {3}.",
    "There is little to be said against the {0} {1} or its {2}.",
    "Every {1} has a {2}, though not every {2} is {0}.",
    "She painted the {1} {0} and left the {2} as it was.",
    "He had kept the {0} {1} in the {3} since the {2} was sold.",
    "Later the {2} was moved closer to the {3}, where the {1} had been {0}.",
)


def filler_paragraphs(random: Random) -> Iterator[str]:
    """Paragraphs about nothing, for as long as they are asked for."""
    while True:
        yield " ".join(_sentence(random) for _ in range(random.randint(3, 7)))


def word_pairs(random: Random) -> Iterator[str]:
    """Names such as ``amber-lantern``; they can repeat."""
    while True:
        yield f"{random.choice(ADJECTIVES)}-{random.choice(NOUNS)}"


def coded_words(random: Random) -> Iterator[str]:
    """Words of no language, six letters each, all different, until none is left."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    seen: set[str] = set()
    while len(seen) < (len(consonants) * len(vowels)) ** 3:
        word = "".join(
            random.choice(consonants) + random.choice(vowels) for _ in range(3)
        )
        if word not in seen:
            seen.add(word)
            yield word


def _sentence(random: Random) -> str:
    first, second = random.sample(ADJECTIVES, 2)
    things = random.sample(NOUNS, 3)
    return random.choice(_SENTENCES).format(first, *things, second)
