(* C6, balance implies near-optimality: equal targets L = K T / E, any scores of range rho, any K, any bias p. With x an
   optimal solution of the assignment problem, LP* its value and V = |A(p) - L|_1 / 2:

     0 <= D(p) - LP* <= V (spread(p) + rho),    -V spread(p) <= affinity(p) - LP* <= V rho.

   The proof needs no optimal bias: it rounds the allocation at p to a feasible one. V tokens' worth of picks are too
   many on overloaded experts and too few on underloaded ones. Move e_k d_j / (V N_kj) from k to j on every token that
   holds k and not j, e and d being surplus and deficit and N_kj the number of those tokens: N_kj >= A_k - A_j =
   e_k + d_j, so no entry leaves [0, 1]; and V is moved in total, at a cost of rho for each token moved. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk duality.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section BalanceImpliesOptimality.
Variables (R : realFieldType) (T E K : nat) (scores : 'I_T -> 'I_E -> R).
Hypothesis KE : (K <= E)%N.
Local Notation A := (load K scores).
Local Notation L := (even R T K).
Local Notation D := (D K scores L).
Local Notation picks := (picks K scores).
Local Notation affinity := (affinity K scores).
Local Notation violation := (violation K scores L).
Local Notation rho := (score_range scores).
Local Notation feasible := (feasible K L).
Local Notation value := (value scores).
Local Notation optimal := (optimal K scores L).
Implicit Types (p : 'I_E -> R) (i : 'I_T) (j k : 'I_E) (x : 'I_T -> 'I_E -> R).

Lemma D_affinity p : D p = affinity p + \sum_k ((A p k)%:R - L k) * p k.
Proof.
have -> : \sum_k ((A p k)%:R - L k) * p k = \sum_k (A p k)%:R * p k - \sum_k L k * p k.
  by rewrite -sumrB; apply: eq_bigr => k _; rewrite mulrBl.
rewrite /D addrA; congr (_ - _); rewrite -sum_picks -big_split; apply: eq_bigr => i _ /=.
by rewrite -big_split.
Qed.

Lemma sum_deviations p : \sum_k ((A p k)%:R - L k) = 0.
Proof.
rewrite sumrB -natr_sum (sum_loads scores KE p) /even sumr_const card_ord -[_ / _ *+ _]mulr_natr.
have [E0|E0] := posnP E; last by rewrite divfK ?subrr // pnatr_eq0 -lt0n.
have K0 : K = 0%N by apply/eqP; move: KE; rewrite E0 leqn0.
by rewrite K0 mul0n mulr0n !mul0r subr0.
Qed.

(* A vector c that sums to zero pairs with any p to at most |c|_1 spread(p) / 2. *)
Lemma pairing_le (c p : 'I_E -> R) : \sum_k c k = 0 ->
  \sum_k c k * p k <= 2%:R^-1 * (\sum_k `|c k|) * spread p.
Proof.
move=> c0; have [E0|E0] := posnP E.
  by rewrite !big1 ?mulr0 ?mul0r // => k; have := ltn_ord k; rewrite [X in (_ < X)%N]E0.
case: (@Order.TotalTheory.arg_minP _ _ _ (Ordinal E0) xpredT p isT) => j _ lowest.
have -> : \sum_k c k * p k = \sum_k c k * (p k - p j).
  under [RHS]eq_bigr do rewrite mulrBr.
  by rewrite sumrB -mulr_suml c0 mul0r subr0.
have -> : 2%:R^-1 * (\sum_k `|c k|) = \sum_k 2%:R^-1 * (`|c k| + c k).
  by rewrite -mulr_sumr big_split /= c0 addr0.
rewrite mulr_suml; apply: ler_sum => k _.
have ge0 : 0 <= p k - p j by rewrite subr_ge0 lowest.
have [ck|ck] := lerP 0 (c k).
  rewrite ger0_norm // (_ : 2%:R^-1 * (c k + c k) = c k); last by field.
  by apply: ler_wpmul2l => //; apply: spread_ge.
by rewrite ltr0_norm // addNr mulr0 mul0r mulr_le0_ge0 // ltW.
Qed.

(* ------------------------------------------------------------ the rounding *)
Section Rounding.
Variable p : 'I_E -> R.
Let deviation k := (A p k)%:R - L k.
Let surplus k := 2%:R^-1 * (`|deviation k| + deviation k).
Let deficit k := 2%:R^-1 * (`|deviation k| - deviation k).
Let moved := 2%:R^-1 * violation p.
Let movers k j := #|[set i | (k \in picks p i) && (j \notin picks p i)]|.
Let share k j := surplus k * deficit j / (moved * (movers k j)%:R).
Let flow i k j : R := share k j * ((k \in picks p i) && (j \notin picks p i))%:R.
Let rounded i k := plan R (picks p) i k - \sum_j flow i k j + \sum_j flow i j k.

Let half_gt0 : 0 < 2%:R^-1 :> R. Proof. by rewrite invr_gt0 ltr0n. Qed.
Let surplus_ge0 k : 0 <= surplus k.
Proof. by rewrite /surplus pmulr_rge0 // -ler_subl_addr sub0r ler_normr lexx orbT. Qed.
Let deficit_ge0 k : 0 <= deficit k.
Proof. by rewrite /deficit pmulr_rge0 // subr_ge0 ler_norm. Qed.
Let surplus_deficit k : surplus k - deficit k = deviation k.
Proof. by rewrite /surplus /deficit; field. Qed.
Let sum_surplus : \sum_k surplus k = moved.
Proof. by rewrite /surplus -mulr_sumr big_split /= sum_deviations addr0. Qed.
Let sum_deficit : \sum_k deficit k = moved.
Proof. by rewrite /deficit -mulr_sumr sumrB sum_deviations subr0. Qed.
Let moved_ge0 : 0 <= moved. Proof. by rewrite -sum_surplus sumr_ge0. Qed.
Let moved0_surplus k : moved = 0 -> surplus k = 0.
Proof. by rewrite -sum_surplus => /psumr_eq0P h; apply: h. Qed.
Let moved0_deficit k : moved = 0 -> deficit k = 0.
Proof. by rewrite -sum_deficit => /psumr_eq0P h; apply: h. Qed.

Let surplus_or_deficit k : surplus k != 0 -> deficit k = 0.
Proof.
rewrite /surplus /deficit; have [h|h] := lerP 0 (deviation k).
  by rewrite ger0_norm // subrr mulr0.
by rewrite ltr0_norm // addNr mulr0 eqxx.
Qed.

(* Enough tokens hold k and not j. *)
Let movers_ge k j : surplus k != 0 -> deficit j != 0 -> surplus k + deficit j <= (movers k j)%:R.
Proof.
move=> ek dj; have dk := surplus_or_deficit ek.
have ej : surplus j = 0 by apply: contraNeq dj => /surplus_or_deficit ->.
have -> : surplus k + deficit j = (A p k)%:R - (A p j)%:R.
  have := surplus_deficit k; have := surplus_deficit j; rewrite dk ej sub0r subr0 /deviation => hj hk.
  by rewrite hk -[deficit j]opprK hj /even; ring.
rewrite ler_subl_addr -natrD ler_nat addnC /load /movers.
rewrite -(cardsID [set i | j \in picks p i] [set i | k \in picks p i]).
apply: leq_add; first exact/subset_leq_card/subsetIr.
by apply/subset_leq_card/subsetP=> i; rewrite !inE andbC.
Qed.

Let share_ge0 k j : 0 <= share k j.
Proof. by apply: divr_ge0; apply: mulr_ge0; rewrite ?ler0n ?surplus_ge0 ?deficit_ge0 ?moved_ge0. Qed.

Let share_movers k j : share k j * (movers k j)%:R = surplus k * deficit j / moved.
Proof.
rewrite /share; have [ek|ek] := eqVneq (surplus k) 0; first by rewrite ek !mul0r.
have [dj|dj] := eqVneq (deficit j) 0; first by rewrite dj mulr0 !mul0r.
have moved_n0 : moved != 0 by apply: contraNneq ek => /moved0_surplus ->.
have movers_n0 : (movers k j)%:R != 0 :> R.
  by rewrite gt_eqF // (lt_le_trans _ (movers_ge ek dj)) // ltr_paddr // lt_def ek surplus_ge0.
by field; rewrite moved_n0 movers_n0.
Qed.

Let share_le k j : (share k j <= deficit j / moved) && (share k j <= surplus k / moved).
Proof.
have [ek|ek] := eqVneq (surplus k) 0; first by rewrite /share ek !mul0r lexx divr_ge0.
have [dj|dj] := eqVneq (deficit j) 0; first by rewrite /share dj mulr0 !mul0r lexx divr_ge0.
have moved_n0 : moved != 0 by apply: contraNneq ek => /moved0_surplus ->.
have le := movers_ge ek dj.
have movers_gt0 : 0 < (movers k j)%:R :> R.
  by apply: lt_le_trans le; rewrite addr_gt0 // lt_def ?ek ?dj ?surplus_ge0 ?deficit_ge0.
rewrite -(ler_pmul2r movers_gt0) -[in X in _ && X](ler_pmul2r movers_gt0) share_movers.
have -> : surplus k * deficit j / moved = deficit j / moved * surplus k by field.
rewrite ler_wpmul2l ?divr_ge0 //=; last by rewrite (le_trans _ le) // ler_addl.
have -> : deficit j / moved * surplus k = surplus k / moved * deficit j by field.
by rewrite ler_wpmul2l ?divr_ge0 // (le_trans _ le) // ler_addr.
Qed.

Let sum_fractions (f : 'I_E -> R) : \sum_k f k = moved -> \sum_k f k / moved <= 1.
Proof.
rewrite -mulr_suml => ->; have [->|n0] := eqVneq moved 0; first by rewrite mul0r ler01.
by rewrite divff.
Qed.

Let sum_share_out k : \sum_j share k j <= 1.
Proof.
apply: le_trans (sum_fractions sum_deficit).
by apply: ler_sum => j _; case/andP: (share_le k j).
Qed.

Let sum_share_in j : \sum_k share k j <= 1.
Proof.
apply: le_trans (sum_fractions sum_surplus).
by apply: ler_sum => k _; case/andP: (share_le k j).
Qed.

Let flow_ge0 i k j : 0 <= flow i k j. Proof. by rewrite mulr_ge0 // ler0n. Qed.
Let flow_le i k j : flow i k j <= share k j. Proof. by rewrite ler_pimulr // lern1 leq_b1. Qed.

Let sum_flow k j : \sum_i flow i k j = surplus k * deficit j / moved.
Proof.
rewrite -mulr_sumr -share_movers; congr (_ * _); rewrite /movers -sum_indicator.
by apply: eq_bigr => i _; rewrite inE.
Qed.

Let sum_flow_out k : \sum_j surplus k * deficit j / moved = surplus k.
Proof.
rewrite -mulr_suml -mulr_sumr sum_deficit; have [h|h] := eqVneq moved 0; last by rewrite mulfK.
by rewrite moved0_surplus // !mul0r.
Qed.

Let sum_flow_in j : \sum_k surplus k * deficit j / moved = deficit j.
Proof.
rewrite -mulr_suml -mulr_suml sum_surplus; have [h|h] := eqVneq moved 0.
  by rewrite moved0_deficit // mulr0 mul0r.
by rewrite mulrAC divff // mul1r.
Qed.

Lemma rounded_feasible : feasible rounded.
Proof.
split=> [i k|i|k].
- rewrite /rounded /plan; have [kt|kt] := boolP (k \in picks p i).
    rewrite [X in _ + X]big1 ?addr0; last by move=> j _; rewrite /flow kt andbF mulr0.
    rewrite subr_ge0 ler_subl_addr ler_addl sumr_ge0 ?andbT //.
    by apply: le_trans (sum_share_out k); apply: ler_sum => j _.
  rewrite big1 ?subr0 ?add0r; last by move=> j _; rewrite /flow (negPf kt) mulr0.
  rewrite sumr_ge0 //=.
  by apply: le_trans (sum_share_in k); apply: ler_sum => j _.
- rewrite big_split sumrB /= [\sum_k \sum_j flow i j k]exchange_big /= subrK.
  by rewrite plan_row card_topk.
have out : \sum_i \sum_j flow i k j = surplus k.
  by rewrite exchange_big -[RHS]sum_flow_out; apply: eq_bigr => j _; exact: sum_flow.
have into : \sum_i \sum_j flow i j k = deficit k.
  by rewrite exchange_big -[RHS]sum_flow_in; apply: eq_bigr => j _; exact: sum_flow.
rewrite big_split sumrB /= plan_column out into -/(load K scores p k).
have -> : (A p k)%:R - surplus k + deficit k = (A p k)%:R - (surplus k - deficit k) by ring.
by rewrite surplus_deficit /deviation; ring.
Qed.

Lemma rounding_cost : affinity p - value rounded <= moved * rho.
Proof.
have -> : affinity p - value rounded = \sum_i \sum_k \sum_j (scores i k - scores i j) * flow i k j.
  rewrite affinityE /value -sumrB; apply: eq_bigr => i _; rewrite -sumrB.
  have -> : \sum_k \sum_j (scores i k - scores i j) * flow i k j =
    \sum_k scores i k * (\sum_j flow i k j) - \sum_k scores i k * (\sum_j flow i j k).
    under eq_bigr do under eq_bigr do rewrite mulrBl.
    under eq_bigr do rewrite sumrB.
    rewrite sumrB; congr (_ - _); first by apply: eq_bigr => k _; rewrite mulr_sumr.
    by rewrite exchange_big; apply: eq_bigr => k _; rewrite mulr_sumr.
  by rewrite -sumrB; apply: eq_bigr => k _; rewrite /rounded; ring.
apply: (@le_trans _ _ (\sum_i \sum_k \sum_j rho * flow i k j)).
  by do 3![apply: ler_sum => ? _]; rewrite ler_wpmul2r // score_range_ge.
rewrite exchange_big /=; under eq_bigr do rewrite exchange_big /=.
under eq_bigr do under eq_bigr do rewrite -mulr_sumr sum_flow.
under eq_bigr do rewrite -mulr_sumr sum_flow_out.
by rewrite -mulr_sumr sum_surplus mulrC.
Qed.

End Rounding.

(* A feasible assignment near the allocation at p, whether or not an optimal one is at hand: with weak duality, this
   bounds the supremum of the problem. *)
Theorem feasible_nearby p : exists x, [/\ feasible x,
  affinity p - value x <= 2%:R^-1 * violation p * rho & D p - value x <= 2%:R^-1 * violation p * (spread p + rho)].
Proof.
have near := rounding_cost p; eexists; split; [exact: (rounded_feasible p) | exact: near |].
rewrite D_affinity addrAC addrC mulrDr; apply: ler_add near.
exact: pairing_le (sum_deviations p).
Qed.

Theorem balance_implies_optimality p x : optimal x ->
  [/\ 0 <= D p - value x <= 2%:R^-1 * violation p * (spread p + rho),
      - (2%:R^-1 * violation p * spread p) <= affinity p - value x &
      affinity p - value x <= 2%:R^-1 * violation p * rho].
Proof.
case=> fx best; have above := weak_duality scores KE p fx.
have pairing := pairing_le p (sum_deviations p).
have excess_le : affinity p - value x <= 2%:R^-1 * violation p * rho.
  have [z [fz near _]] := feasible_nearby p; apply: le_trans near.
  by rewrite ler_add2l ler_opp2; apply: best.
split=> //.
  rewrite subr_ge0 above /= D_affinity addrAC addrC mulrDr; exact: ler_add.
rewrite ler_oppl opprB ler_subl_addr; apply: le_trans above _.
by rewrite D_affinity addrC ler_add2r.
Qed.

End BalanceImpliesOptimality.
